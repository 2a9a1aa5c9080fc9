"""The errors of a prediction, in float32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.frequency import band_energy
from bigain.tokens.grid import Grid

Loss = Literal["l2", "l1", "huber", "epsilon", "velocity", "x0"]


def prediction_error(predicted: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """Average the loss, squared unless it is `l1` or `huber`, over each row. `(b, c, h, w)` twice -> `(b,)`."""
    predicted, target = predicted.float(), target.float()
    if loss == "huber":
        error = F.huber_loss(predicted, target, reduction="none")
    elif loss == "l1":
        error = (predicted - target).abs()
    else:
        error = (predicted - target).square()
    return torch.flatten(error, 1).mean(1)


def band_errors(predicted: Tensor, noise: Tensor, bands: int) -> Tensor:
    """Split the squared error by radial frequency of the orthonormal DCT: see `band_energy`. By Parseval, parts add up.

    `(b, c, h, w)` twice -> `(b, 1 + bands)`, float32.
    """
    residual = (predicted.float() - noise.float()).flatten(2).mT.contiguous()
    grid = Grid(*noise.shape[2:])
    return (band_energy(residual, grid, bands) / grid.n).float()
