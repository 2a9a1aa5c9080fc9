"""Skip tokens that resemble their surroundings and restore them from neighbours: CoReDiT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import MergePlan, highest
from bigain.tokens.precision import unit_tokens
from bigain.tokens.weighted import RestoringPlan

# Smallest weight of a neighbour; coherences may be negative.
_MIN_WEIGHT = 1e-6


def coherence(x: Tensor, grid: Grid, window: int) -> Tensor:
    """Score tokens by their mean cosine to the tokens of their window, themselves included.

    It is the product of the unit token and the mean of the window's unit tokens, so linear in the number of tokens.

    Args:
        x: Tokens. `(b, n, c)`, any float dtype.
        grid: `(h, w)` with `h * w == n`.
        window: Side of the windows, which start at the top left; those at the border may be smaller.

    Returns:
        Larger means more redundant. `(b, n)`, float32.
    """
    grid.check(x)
    h, w = min(window, grid.h), min(window, grid.w)
    maps = unit_tokens(x).unflatten(1, grid).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(maps, (h, w), ceil_mode=True)
    window_means = pooled.repeat_interleave(h, 2)[:, :, : grid.h].repeat_interleave(w, 3)[..., : grid.w]
    return (maps * window_means).sum(1).flatten(1)


def always_kept(grid: Grid, cell: Cell, offset: int, device: torch.device) -> Tensor:
    """Mark the tokens (y, x) with `(y + x - offset) % min(cell) == 0`, and the last: at least one in each cell.

    Cells start at the top left; those at the border may be smaller. `(n,)`, bool.
    """
    token = torch.arange(grid.n, device=device)
    return ((token // grid.w + token % grid.w - offset) % min(cell) == 0) | (token == grid.n - 1)


def max_skipped(grid: Grid, cell: Cell, offset: int) -> int:
    """Return the number of tokens that `always_kept` does not mark."""
    m = min(cell)
    rows, columns = ([len(range(first, side, m)) for first in range(m)] for side in grid)
    kept = sum(rows[first] * columns[(offset - first) % m] for first in range(m))
    return grid.n - kept - ((grid.h + grid.w - 2 - offset) % m != 0)


def coherence_plan(score: Tensor, grid: Grid, cell: Cell, skipped: int, offset: int) -> RestoringPlan:
    """Skip the most coherent tokens; restore each as the mean of its cell's other tokens, weighted by coherence.

    Args:
        score: Coherence. `(b, n)`, float32.
        grid: `(h, w)` with `h * w == n`.
        cell: Neighbours are the tokens of a cell; the cells at the border may be smaller.
        skipped: Number of tokens to skip, at most `max_skipped`.
        offset: See `always_kept`.
    """
    token = torch.arange(grid.n, device=score.device)
    score = score.nan_to_num(nan=-1)
    is_skipped = highest(score.masked_fill(always_kept(grid, cell, offset, score.device), -torch.inf), skipped)
    position = torch.arange(cell.area, device=score.device)
    y = (token // grid.w // cell.h * cell.h)[:, None] + position // cell.w
    x = (token % grid.w // cell.w * cell.w)[:, None] + position % cell.w
    in_grid = (y < grid.h) & (x < grid.w)
    neighbours = torch.where(in_grid, y * grid.w + x, token[:, None])
    weight = score.clamp(min=_MIN_WEIGHT).masked_fill(is_skipped, 0)[:, neighbours] * in_grid
    # Tokens that are not skipped are restored from themselves.
    weight = torch.where(is_skipped[..., None], weight, (neighbours == token[:, None]) & in_grid)
    weight = weight / weight.sum(2, keepdim=True)
    leader = neighbours.expand(len(score), -1, -1).gather(2, weight.max(2, keepdim=True).indices).squeeze(2)
    plan = MergePlan.from_leaders(leader, skipped, "prune")
    return RestoringPlan(**vars(plan), rows=plan.restore[:, neighbours], weight=weight)
