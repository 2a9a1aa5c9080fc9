"""Average pooling of keys and values: IE-KVD with alpha 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.compressors.kv import FactorDownsampler
from bigain.diffusion.schedules import Schedule
from bigain.tokens.downsampling import downsample_average
from bigain.tokens.grid import Grid


class AveragePool(FactorDownsampler):
    """Keys and values averaged over windows.

    Source: BiGain (CVPR 2026), Eq. 8 with alpha 0; its tables print it as a method of its own.
    Cost: none in matrix products.
    """

    def __init__(self, *, factor: int | Schedule, aligned: bool = False, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            aligned: Where the map is no multiple of the smaller one, spread the windows evenly over it; in the paper's
                release they lie side by side and leave its end out. See `tokens.downsampling.downsample_average`.
            kwargs: See the base class.
        """
        super().__init__(factor=factor, **kwargs)
        self.aligned = aligned

    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        return downsample_average(x, grid, self.value_in(context), self.aligned)
