"""Fewer keys and values: spatial downsampling and selection of the attention input."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Grid

Keep = Literal["high", "low"]

# Distances computed at a time, in elements.
_BLOCK = 2**24


def downsampled_grid(grid: Grid, factor: int) -> Grid:
    """Return the grid after downsampling by `factor` per side, with floor division.

    Raises:
        ValueError: If the factor is below 2 or larger than a side.
    """
    if not 2 <= factor <= min(grid):
        raise ValueError(f"a factor of {factor} per side does not fit a {grid.h}x{grid.w} token map")
    return Grid(grid.h // factor, grid.w // factor)


def nearest_indices(n_in: int, n_out: int, device: torch.device | None = None) -> Tensor:
    """Return the indices of nearest-exact sampling, `floor((i + 0.5) * n_in / n_out)`. `(n_out,)`, int64."""
    # In integers, (2i + 1) * n_in / (2 n_out), so that rounding cannot move an index.
    return (2 * torch.arange(n_out, device=device) + 1) * n_in // (2 * n_out)


def nearest_tokens(grid: Grid, target: Grid, device: torch.device | None = None) -> Tensor:
    """Return the token of `grid` nearest to each token of a smaller or larger one. `(target.n,)`, int64."""
    rows = nearest_indices(grid.h, target.h, device)
    columns = nearest_indices(grid.w, target.w, device)
    return (rows[:, None] * grid.w + columns).flatten()


def downsample_nearest(x: Tensor, grid: Grid, factor: int) -> Tensor:
    """Select the token nearest to each new centre (ToDo). `(b, n, c)` -> `(b, n', c)`; factor 2 takes 1, 3, 5, ..."""
    grid.check(x)
    small = downsampled_grid(grid, factor)
    if kernels_serve(x):
        from bigain.tokens.kernels.plans import downsample

        return downsample(x, grid, factor, "nearest")
    return x.index_select(1, nearest_tokens(grid, small, x.device))


def downsample_average(x: Tensor, grid: Grid, factor: int, aligned: bool = False) -> Tensor:
    """Average windows of `n_in // n_out` per side, unpadded. `(b, n, c)` -> `(b, n', c)`.

    If n_out does not divide a side, the last rows or columns are in no window, and windows drift from the tokens of
    `downsample_nearest`. With `aligned`, windows of the same size are centred on these tokens.
    """
    grid.check(x)
    small = downsampled_grid(grid, factor)
    if kernels_serve(x, "aligned windows" if aligned else ""):
        from bigain.tokens.kernels.plans import downsample

        return downsample(x, grid, factor, "average")
    return _average(x, grid, small, aligned)


def _average(x: Tensor, grid: Grid, small: Grid, aligned: bool) -> Tensor:
    maps = x.reshape(len(x), grid.h, grid.w, -1)
    if aligned:
        for dim, (n_in, n_out) in enumerate(zip(grid, small, strict=True), 1):
            size = n_in // n_out
            first = nearest_indices(n_in, n_out, x.device)[:, None] - size // 2
            maps = maps.index_select(dim, (first + torch.arange(size, device=x.device)).flatten())
    pooled = F.avg_pool2d(maps.permute(0, 3, 1, 2), (grid.h // small.h, grid.w // small.w))
    return pooled.permute(0, 2, 3, 1).flatten(1, 2)


def interextrapolate(x: Tensor, grid: Grid, factor: int, alpha: float | Tensor, aligned: bool = False) -> Tensor:
    """Blend nearest and average downsampling: `alpha * nearest + (1 - alpha) * average` (Eq. 8 of BiGain, IE-KVD).

    `alpha` below 1 interpolates and keeps low frequencies; above 1 it extrapolates and sharpens.

    Args:
        x: Attention input. `(b, n, c)`, any float dtype.
        grid: `(h, w)` with `h * w == n`.
        factor: Stride per side, at least 2; factor 2 keeps a quarter of the tokens.
        alpha: A number, or one per row. `(b,)`.
        aligned: Centre windows on the nearest tokens, see `downsample_average`; the paper's release does not.

    Returns:
        Tokens on the `(h // factor, w // factor)` grid, in the dtype of `x`. Nearest and average are rounded to that
        dtype; they are blended in float32.
    """
    grid.check(x)
    small = downsampled_grid(grid, factor)
    if kernels_serve(x, "aligned windows" if aligned else ""):
        from bigain.tokens.kernels.plans import downsample

        if isinstance(alpha, Tensor):
            return downsample(x, grid, factor, "blend", 1.0, alpha.float().reshape(-1))
        return downsample(x, grid, factor, "blend", alpha)
    weight = alpha.float().view(-1, 1, 1) if isinstance(alpha, Tensor) else alpha
    nearest = x.index_select(1, nearest_tokens(grid, small, x.device)).float()
    average = _average(x, grid, small, aligned).float()
    return (weight * nearest + (1 - weight) * average).to(x.dtype)


def selected_tokens(score: Tensor, count: int, keep: Keep) -> Tensor:
    """Return the `count` token ids of highest or lowest score, ascending; on ties the lower index.

    `(b, n)` -> `(b, count)`, int64.
    """
    order = score.argsort(dim=1, descending=keep == "high", stable=True)[:, :count]
    return order.sort(dim=1).values


def frequency_selection(x: Tensor, score: Tensor, count: int, keep: Keep) -> Tensor:
    """Keep the `selected_tokens`, unchanged and in their order (Table 12). `(b, n, c)`, `(b, n)` -> `(b, count, c)`."""
    return x.take_along_dim(selected_tokens(score, count, keep)[..., None], 1)


def nearest_selected(selected: Tensor, grid: Grid) -> Tensor:
    """Find for each token of the map the nearest selected one, the first on ties.

    Args:
        selected: Token ids. `(b, m)`, int64.
        grid: The token map.

    Returns:
        Positions in `selected`. `(b, n)`, int64.
    """
    token = torch.arange(grid.n, device=selected.device)
    y, x = token // grid.w, token % grid.w
    # In blocks of rows, so that memory does not grow with the batch.
    rows = max(1, _BLOCK // (grid.n * selected.shape[1]))
    distances = (
        (y[None, :, None] - y[ids][:, None]) ** 2 + (x[None, :, None] - x[ids][:, None]) ** 2
        for ids in selected.split(rows)
    )
    return torch.cat([distance.argmin(2) for distance in distances])
