"""ToDo: keys and values by nearest-exact sampling."""

from __future__ import annotations

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors.kv import FactorDownsampler
from bigain.tokens.downsampling import downsample_nearest, downsampled_grid, nearest_tokens
from bigain.tokens.grid import Grid


class ToDo(FactorDownsampler):
    """Token downsampling of keys and values by nearest-exact sampling.

    Source: Smith et al., ToDo: Token Downsampling for Efficient Generation of High-Resolution Images (IJCAI 2024).
    Cost: none in matrix products.
    """

    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        return downsample_nearest(x, grid, self.value_in(context))

    def key_tokens(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        return nearest_tokens(grid, downsampled_grid(grid, self.value_in(context)), x.device)[None]
