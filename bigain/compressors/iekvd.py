"""IE-KVD (BiGain_TD): blend nearest and average downsampling of keys and values."""

from __future__ import annotations

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors.kv import KVDownsampler, check_factor, check_fits
from bigain.compressors.where import Where
from bigain.diffusion.schedules import Schedule
from bigain.tokens.downsampling import interextrapolate, upsampling_indices


class IEKVD(KVDownsampler):
    """Interpolate-extrapolate KV downsampling: `alpha * nearest + (1 - alpha) * average`.

    Source: BiGain (CVPR 2026), Eq. 8 and Algorithm 4.
    Cost: none in matrix products.
    """

    def __init__(
        self,
        *,
        factor: int,
        alpha: float | Schedule = 0.9,
        where: Where = Where(),  # noqa: B008 - frozen
    ) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            alpha: Weight of the nearest token, any real, or a schedule over the timestep value. The paper: 0.9 for
                classification on SD 2.0, `Linear(0.8, 1.2)` for generation there, 0.1 on DiT.
            where: Sites; the default is every stride-1 block.

        Raises:
            InputError: If the factor is not an integer of at least 2.
        """
        super().__init__(where)
        self.factor = check_factor("IEKVD", factor)
        self.alpha = alpha

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        check_fits("IEKVD", self.factor, grid, site)
        alpha = self.alpha(context.timesteps) if isinstance(self.alpha, Schedule) else self.alpha
        return interextrapolate(x, grid, self.factor, alpha)

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return upsampling_indices(site.grid(context.latent), self.factor, x.device)
