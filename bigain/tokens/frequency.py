"""Energy of token maps by radial frequency band, from the orthonormal 2-D cosine transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigain.tokens.grid import Grid
from bigain.tokens.precision import widest_float, without_autocast


def dct_matrix(n: int, device: torch.device | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the orthonormal DCT-II matrix; row u is the cosine with u half-waves. `(n, n)`."""
    u = torch.arange(n, device=device, dtype=dtype)[:, None]
    x = torch.arange(n, device=device, dtype=dtype)[None]
    matrix = torch.cos(math.pi * u * (2 * x + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix


def radial_bands(grid: Grid, bands: int, device: torch.device | None = None) -> Tensor:
    """Return the band of every mode (u, v): 0 is the mean, k holds radii in [(k - 1) / bands, k / bands).

    The radius is `sqrt(((u / h)^2 + (v / w)^2) / 2)`: 0 for the mean, 1 at the highest frequency of both directions,
    which no mode reaches exactly. With at most as many bands as the shorter side has tokens, none is empty.

    Args:
        grid: The token map.
        bands: Bands of equal width.
        device: Device of the result.

    Returns:
        `(h, w)`, int64 in 0..bands.
    """
    u = torch.arange(grid.h, device=device)[:, None] * grid.w
    v = torch.arange(grid.w, device=device)[None] * grid.h
    # In integers, so that rounding cannot move a mode on an edge.
    radius = bands**2 * (u**2 + v**2)
    edges = 2 * grid.n**2 * torch.arange(1, bands, device=device) ** 2
    band = torch.bucketize(radius, edges, right=True) + 1
    band[0, 0] = 0
    return band


def band_energy(x: Tensor, grid: Grid, bands: int) -> Tensor:
    """Compute the energy of token maps by radial band, as a mean over channels.

    The transform is orthonormal: summed over bands this is the sum of squares over tokens.

    Args:
        x: Tokens in row-major order. `(b, n, c)`, any float dtype.
        grid: `(h, w)` with `h * w == n`.
        bands: Bands of equal width, besides the mean; see `radial_bands`.

    Returns:
        `(b, 1 + bands)`, float64 if the device has it.

    Raises:
        ValueError: If `h * w != n`.
    """
    grid.check(x)
    dtype = widest_float(x.device)
    maps = x.to(dtype).view(len(x), grid.h, grid.w, -1)
    with without_autocast(x):
        row_modes = torch.einsum("vx,byxc->byvc", dct_matrix(grid.w, x.device, dtype), maps)
        modes = torch.einsum("uy,byvc->buvc", dct_matrix(grid.h, x.device, dtype), row_modes)
        energy = modes.square().mean(3).flatten(1)
        in_band = torch.nn.functional.one_hot(radial_bands(grid, bands, x.device).flatten(), 1 + bands)
        return energy @ in_band.to(dtype)
