"""Choose the destination token of each cell. All return token ids, `(b, cells)` or `(1, cells)`, int64."""

from __future__ import annotations

import torch
from torch import Tensor

from bigain.tokens.grid import Cell, Grid, cell_count, cell_tokens, to_cells
from bigain.tokens.randomness import random_integers


def _at_position(position: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Return the token ids at an in-cell position of every cell. `(b, cells)` -> `(b, cells)`."""
    tokens = cell_tokens(grid, cell, position.device).expand(len(position), -1, -1)
    return tokens.gather(2, position[..., None]).squeeze(2)


def cell_destinations(score: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Choose the lowest score of each cell, the first on ties (Algorithm 2 of BiGain). `(b, n)` -> `(b, cells)`."""
    return _at_position(to_cells(score, grid, cell).argmin(2), grid, cell)


def released_destinations(score: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Choose as the released LGTM code does, reading the scores in the wrong order. `(b, n)` -> `(b, cells)`.

    Each strip of `cell.h` rows is flattened row-major and cut into runs of `cell.area`; run j decides cell j. It
    agrees with the true argmin only by chance. Kept to reproduce the paper's numbers.

    Raises:
        ValueError: If the grid's width is not a multiple of the cell's.
    """
    if grid.w % cell.w:
        raise ValueError(f"the released rule needs a width divisible by {cell.w}, not {grid.w}")
    complete_strips = score.reshape(-1, grid.h, grid.w)[:, : grid.h // cell.h * cell.h]
    return _at_position(complete_strips.reshape(len(score), -1, cell.area).argmin(2), grid, cell)


def first_destinations(grid: Grid, cell: Cell, device: torch.device) -> Tensor:
    """Choose the top-left token of each cell. `(1, cells)`."""
    return cell_tokens(grid, cell, device)[:, :, 0]


def random_destinations(keys: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Choose a position per cell, a pure function of the row's key. `(b,)` -> `(b, cells)`."""
    return _at_position(random_integers(keys, cell_count(grid, cell), cell.area), grid, cell)
