"""ToDo: keep the nearest key of each new grid place."""

from __future__ import annotations

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors.kv import KVDownsampler, check_factor, check_fits
from bigain.compressors.where import Where
from bigain.tokens.downsampling import downsample_nearest, nearest_tokens, upsampling_indices


class ToDo(KVDownsampler):
    """Token downsampling of keys and values by nearest-exact sampling.

    Source: Smith et al., ToDo: Token Downsampling for Efficient Generation of High-Resolution Images (IJCAI 2024).
    Cost: none in matrix products.
    """

    def __init__(self, *, factor: int, where: Where = Where()) -> None:  # noqa: B008 - frozen
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            where: Sites; the default is every stride-1 block.

        Raises:
            InputError: If the factor is not an integer of at least 2.
        """
        super().__init__(where)
        self.factor = check_factor("ToDo", factor)

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        check_fits("ToDo", self.factor, grid, site)
        return downsample_nearest(x, grid, self.factor)

    def key_tokens(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return nearest_tokens(site.grid(context.latent), self.factor, x.device)[None]

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return upsampling_indices(site.grid(context.latent), self.factor, x.device)
