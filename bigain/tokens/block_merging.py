"""Adaptive block merging (ABM, Algorithm 3 of BiGain): flat cells become one token each, without matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bigain.tokens.grid import Cell, Grid, cell_count, cell_tokens, to_cells
from bigain.tokens.matching import MergePlan

Aggregate = Literal["max", "sum", "mean", "min", "std"]

_AGGREGATES: dict[Aggregate, Callable[[Tensor], Tensor]] = {
    "max": lambda cells: cells.amax(2),
    "sum": lambda cells: cells.sum(2),
    "mean": lambda cells: cells.mean(2),
    "min": lambda cells: cells.amin(2),
    "std": lambda cells: cells.std(2, correction=0),
}


def block_merging(score: Tensor, grid: Grid, cell: Cell, blocks: int, aggregate: Aggregate = "max") -> MergePlan:
    """Plan to replace the cells with the lowest aggregated score by the mean of their tokens.

    Args:
        score: Detail per token. `(b, n)`, float32.
        grid: `(h, w)` with `h * w == n`.
        cell: Cell size; leftover strips are always kept.
        blocks: Number of cells to merge, in 1..complete cells; ties go to the lower cell index.
        aggregate: How token scores become a cell score.

    Returns:
        A plan with `n - blocks * (area - 1)` merged rows.

    Raises:
        ValueError: If there are fewer complete cells than `blocks`, or `blocks` is below 1.
    """
    if not 1 <= blocks <= cell_count(grid, cell):
        raise ValueError(f"cannot merge {blocks} of {cell_count(grid, cell)} cells")
    b, n = score.shape
    level = _AGGREGATES[aggregate](to_cells(score, grid, cell))
    flat = level.argsort(dim=1, stable=True)[:, :blocks]
    members = cell_tokens(grid, cell, score.device).expand(b, -1, -1)
    members = members.gather(1, flat[..., None].expand(-1, -1, cell.area))
    leader = torch.arange(n, device=score.device).repeat(b, 1)
    leader.scatter_(1, members.flatten(1), members[..., :1].expand_as(members).flatten(1))
    return MergePlan.from_leaders(leader, blocks * (cell.area - 1))


def low_block_merging(score: Tensor, grid: Grid, cell: Cell, low: int) -> MergePlan:
    """Plan to replace every cell whose tokens are all among those of lowest score by their mean.

    Args:
        score: Detail per token. `(b, n)`, float32.
        grid: `(h, w)` with `h * w == n`.
        cell: Cell size; leftover strips are always kept.
        low: Number of tokens of lowest score, in 1..n; ties go to the lower index.

    Returns:
        A padded plan of n rows: the number of cells depends on the scores, and differs between sequences.
    """
    b, n = score.shape
    lowest = score.argsort(dim=1, stable=True)[:, :low]
    is_low = torch.zeros(b, n, dtype=torch.bool, device=score.device).scatter_(1, lowest, True)
    members = cell_tokens(grid, cell, score.device)
    flat = to_cells(is_low, grid, cell).all(2, keepdim=True)
    leaders = torch.where(flat, members[..., :1], members)
    leader = torch.arange(n, device=score.device).repeat(b, 1)
    return MergePlan.padded(leader.scatter_(1, members.flatten(1).expand(b, -1), leaders.flatten(1)))
