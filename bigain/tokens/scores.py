"""Token scores of Table 13: `(b, n, c), Grid -> (b, n)` in float32, larger meaning more detail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.grid import Grid
from bigain.tokens.precision import unit_tokens, without_autocast

# A score of tokens: `(b, n, c), Grid -> (b, n)`. Not `Tensor`: the help of options would list its subclasses.
Score = Callable[[Tensor, Grid], Any]

# Elements processed at a time on a CPU, so that they stay in the cache: fresh pages cost more than the sums.
_BLOCK_ON_CPU = 2**20


def _laplacian(x: Tensor, grid: Grid) -> Tensor:
    """4-neighbour Laplacian of every channel map, zero padded. `(b, n, c)` -> `(b, n, c)`, float32."""
    b, n, c = x.shape
    # The permuted view is channels last in memory, so the depthwise convolution runs without a copy.
    maps = x.float().reshape(b, grid.h, grid.w, c).permute(0, 3, 1, 2)
    # Filled on the device, as a list would be copied to the GPU at every site; the dtype is explicit because a
    # half-precision Trainer changes torch's default.
    stencil = torch.zeros(3, 3, device=x.device, dtype=torch.float32)
    stencil[1].fill_(1)
    stencil[:, 1].fill_(1)
    stencil[1, 1].fill_(-4)
    with without_autocast(x):
        response = F.conv2d(maps, stencil.expand(c, 1, 3, 3), padding=1, groups=c)
    return response.permute(0, 2, 3, 1).reshape(b, n, c)


def _laplacian_score(x: Tensor, grid: Grid, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce the Laplacian over channels. `(b, n, c)` -> `(b, n)`, float32."""
    grid.check(x)
    rows = max(1, _BLOCK_ON_CPU // (x.shape[1] * x.shape[2])) if x.device.type == "cpu" else len(x)
    return torch.cat([reduce(_laplacian(block, grid)) for block in x.split(rows)])


def laplacian_l1(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the mean absolute 4-neighbour Laplacian over channels (Eq. 7, Table 13).

    Zero padding, so the border tokens of a constant map score high.

    Args:
        x: Tokens in row-major order. `(b, n, c)`, any float dtype.
        grid: `(h, w)` with `h * w == n`.

    Returns:
        Scores in float32. `(b, n)`, in feature units.

    Raises:
        ValueError: If `h * w != n`.
    """
    return _laplacian_score(x, grid, lambda response: response.abs_().mean(-1))


def laplacian_l2(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the root mean square 4-neighbour Laplacian over channels (Table 13). `(b, n)`."""
    return _laplacian_score(x, grid, lambda response: response.square_().mean(-1).sqrt_())


def l1_norm(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by their l1 norm (Table 13). `(b, n)`."""
    grid.check(x)
    return x.float().abs().sum(-1)


def l2_norm(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by their l2 norm (Table 13). `(b, n)`."""
    grid.check(x)
    return x.float().norm(dim=-1)


def channel_variance(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the biased variance over their channels (Table 13). `(b, n)`."""
    grid.check(x)
    return x.float().var(-1, correction=0)


def global_mean_deviation(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by their l2 distance from the mean token (Table 13). `(b, n)`."""
    grid.check(x)
    x = x.float()
    return (x - x.mean(1, keepdim=True)).norm(dim=-1)


def dft_amplitude(x: Tensor, grid: Grid, *, include_dc: bool = False) -> Tensor:
    """Score tokens by the summed amplitude of the DFT over their channels (Table 13). `(b, n)`.

    Args:
        x: Tokens. `(b, n, c)`.
        grid: `(h, w)` with `h * w == n`.
        include_dc: Include bin 0, as `dft_amplitude_with_dc`; the default excludes the channel mean.
    """
    grid.check(x)
    c = x.shape[-1]
    amplitude = torch.fft.rfft(x.float(), dim=-1).abs()
    # Bins k and c - k of a real vector are conjugate: each rfft bin counts twice, except DC and Nyquist.
    total = 2 * amplitude.sum(-1) - amplitude[..., 0]
    if c % 2 == 0:
        total = total - amplitude[..., -1]
    return total if include_dc else total - amplitude[..., 0]


def dft_amplitude_with_dc(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the summed amplitude of all DFT bins, the mean included: Table 13 to the letter. `(b, n)`."""
    return dft_amplitude(x, grid, include_dc=True)


def dft_centroid(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the centroid of their channel spectrum, over rfft bins 0..c//2 (Table 13). `(b, n)`, in bins."""
    grid.check(x)
    amplitude = torch.fft.rfft(x.float(), dim=-1).abs()
    bins = torch.arange(amplitude.shape[-1], device=x.device, dtype=torch.float32)
    return (amplitude * bins).sum(-1) / (amplitude.sum(-1) + 1e-7)


def dft_centroid_full(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by the centroid of all c DFT bins: Table 13 to the letter. `(b, n)`, in bins.

    Bins k and c - k have equal amplitudes, so all it measures is the share of bin 0: it is c / 2 without any, 0 for a
    token whose channels are equal.
    """
    total = dft_amplitude(x, grid, include_dc=True)
    return x.shape[-1] / 2 * (total - x.float().sum(-1).abs()) / (total + 1e-7)


def neighbour_cosine(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by minus their mean cosine to the 4-neighbours inside the map (Table 13). `(b, n)`."""
    grid.check(x)
    u = unit_tokens(x).view(-1, grid.h, grid.w, x.shape[-1])
    vertical = (u[:, 1:] * u[:, :-1]).sum(-1)
    horizontal = (u[:, :, 1:] * u[:, :, :-1]).sum(-1)
    total = F.pad(vertical, (0, 0, 1, 0)) + F.pad(vertical, (0, 0, 0, 1))
    total = total + F.pad(horizontal, (1, 0)) + F.pad(horizontal, (0, 1))
    rows = torch.arange(grid.h, device=x.device)[:, None]
    columns = torch.arange(grid.w, device=x.device)[None]
    neighbours = (rows > 0).int() + (rows < grid.h - 1).int() + (columns > 0).int() + (columns < grid.w - 1).int()
    return -(total / neighbours.clamp(min=1)).flatten(1)


def global_mean_cosine(x: Tensor, grid: Grid) -> Tensor:
    """Score tokens by minus their cosine to the mean token (Table 13). `(b, n)`."""
    grid.check(x)
    return -(unit_tokens(x) * unit_tokens(x.float().mean(1, keepdim=True))).sum(-1)
