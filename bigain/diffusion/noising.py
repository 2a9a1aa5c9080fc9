"""The forward process and the errors of a noise prediction, all in float32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.frequency import band_energy
from bigain.tokens.grid import Grid

Loss = Literal["l2", "l1", "huber"]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Shape per-row values to broadcast over `like`. `(b,)` -> `(b, 1, 1, 1)`."""
    return values.float().view(-1, *[1] * (like.ndim - 1))


def add_noise(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return `sqrt(abar) x + sqrt(1 - abar) eps`. `(b, c, h, w)` twice and `(b,)` -> `(b, c, h, w)`, float32."""
    return _column(alpha_bar.sqrt(), x) * x.float() + _column((1 - alpha_bar).sqrt(), x) * noise.float()


def epsilon_from_velocity(velocity: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the noise that a v-prediction implies (Salimans and Ho, 2022): `sqrt(abar) v + sqrt(1 - abar) x_t`."""
    return add_noise(velocity, noisy, alpha_bar)


def prediction_error(predicted: Tensor, noise: Tensor, loss: Loss) -> Tensor:
    """Average the loss over the elements of each row, in float32. `(b, c, h, w)` twice -> `(b,)`."""
    predicted, noise = predicted.float(), noise.float()
    if loss == "l2":
        error = (predicted - noise).square()
    elif loss == "l1":
        error = (predicted - noise).abs()
    else:
        error = F.huber_loss(predicted, noise, reduction="none")
    return torch.flatten(error, 1).mean(1)


def band_errors(predicted: Tensor, noise: Tensor, bands: int) -> Tensor:
    """Split the squared error of each row by the radial frequency of the orthonormal DCT; by Parseval, parts add up.

    Args:
        predicted: `(b, c, h, w)`.
        noise: `(b, c, h, w)`.
        bands: Bands of equal width; the mean of each channel is a band before them: see `radial_bands`.

    Returns:
        `(b, 1 + bands)`, float32.
    """
    residual = (predicted.float() - noise.float()).flatten(2).mT.contiguous()
    grid = Grid(*noise.shape[2:])
    return (band_energy(residual, grid, bands) / grid.n).float()
