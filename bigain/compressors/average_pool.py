"""Average pooling of keys and values: IE-KVD with alpha 0."""

from __future__ import annotations

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.compressors.kv import FactorDownsampler
from bigain.tokens.downsampling import downsample_average
from bigain.tokens.grid import Grid


class AveragePool(FactorDownsampler):
    """Keys and values averaged over windows.

    Source: BiGain (CVPR 2026), Eq. 8 with alpha 0.
    Cost: none in matrix products.
    """

    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        return downsample_average(x, grid, self.factor)
