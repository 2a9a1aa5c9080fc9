"""IE-KVD (BiGain_TD): blend nearest and average downsampling of keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.compressors.kv import FactorDownsampler
from bigain.diffusion.schedules import Schedule
from bigain.tokens.downsampling import interextrapolate
from bigain.tokens.grid import Grid


class IEKVD(FactorDownsampler):
    """Interpolate-extrapolate KV downsampling: `alpha * nearest + (1 - alpha) * average`.

    Source: BiGain (CVPR 2026), Eq. 8. Algorithm 4 also scores the tokens, but Eq. 8 never uses the scores, so none are
    computed here.
    Cost: none in matrix products.
    """

    def __init__(
        self, *, factor: int | Schedule, alpha: float | Schedule = 0.9, aligned: bool = False, **kwargs: Any
    ) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            alpha: Weight of the nearest token, any real, or a schedule over the timestep value. The paper: 0.9 for
                classification on SD 2.0, `Linear(0.8, 1.2)` for generation there, 0.1 on DiT.
            aligned: Where the map is no multiple of the smaller one, centre averaged windows on nearest tokens; in the
                paper's release the two grids drift apart. See `tokens.downsampling.downsample_average`.
            kwargs: See the base class.
        """
        super().__init__(factor=factor, **kwargs)
        self.alpha = alpha
        self.aligned = aligned

    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        alpha = self.alpha(context.timesteps) if isinstance(self.alpha, Schedule) else self.alpha
        return interextrapolate(x, grid, self.value_in(context), alpha, self.aligned)
