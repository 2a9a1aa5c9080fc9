"""Token maps: row-major grids and their division into cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Height and width of a token map; token (y, x) has id `y * w + x`."""

    h: int
    w: int

    @property
    def n(self) -> int:
        """Number of tokens."""
        return self.h * self.w

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is `(b, n, c)` with one token per position of the grid."""
        if x.ndim != 3 or x.shape[1] != self.n:
            raise ValueError(f"tokens of shape {tuple(x.shape)} do not fill a {self.h}x{self.w} grid of {self.n}")


class Cell(NamedTuple):
    """Height and width of the cells of a grid; leftover strips belong to no cell."""

    h: int
    w: int

    @property
    def area(self) -> int:
        """Tokens per cell."""
        return self.h * self.w


def cell_count(grid: Grid, cell: Cell) -> int:
    """Number of complete cells."""
    return (grid.h // cell.h) * (grid.w // cell.w)


def to_cells(values: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Group per-token values by complete cell, row-major inside and between cells.

    `(b, n, ...)` -> `(b, cells, area, ...)`.
    """
    rows, columns = grid.h // cell.h, grid.w // cell.w
    b, shape = len(values), values.shape[2:]
    tiles = values.reshape(b, grid.h, grid.w, *shape)[:, : rows * cell.h, : columns * cell.w]
    tiles = tiles.reshape(b, rows, cell.h, columns, cell.w, *shape).transpose(2, 3)
    return tiles.reshape(b, rows * columns, cell.area, *shape)


def from_cells(values: Tensor, grid: Grid, cell: Cell) -> Tensor:
    """Undo `to_cells` of a grid without leftover strips. `(b, cells, area, ...)` -> `(b, n, ...)`."""
    rows, columns = grid.h // cell.h, grid.w // cell.w
    b, shape = len(values), values.shape[3:]
    return values.reshape(b, rows, columns, cell.h, cell.w, *shape).transpose(2, 3).reshape(b, grid.n, *shape)


def cell_tokens(grid: Grid, cell: Cell, device: torch.device) -> Tensor:
    """Token ids of every complete cell. `(1, cells, area)`, int64."""
    return to_cells(torch.arange(grid.n, device=device)[None], grid, cell)
