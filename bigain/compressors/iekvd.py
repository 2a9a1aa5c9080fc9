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

    Source: BiGain (CVPR 2026), Eq. 8 and Algorithm 4.
    Cost: none in matrix products.
    """

    def __init__(self, *, factor: int, alpha: float | Schedule = 0.9, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            alpha: Weight of the nearest token, any real, or a schedule over the timestep value. The paper: 0.9 for
                classification on SD 2.0, `Linear(0.8, 1.2)` for generation there, 0.1 on DiT.
            kwargs: See the base class.
        """
        super().__init__(factor=factor, **kwargs)
        self.alpha = alpha

    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        alpha = self.alpha(context.timesteps) if isinstance(self.alpha, Schedule) else self.alpha
        return interextrapolate(x, grid, self.factor, alpha)
