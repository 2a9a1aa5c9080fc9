"""Grids and their cells, against loops over (y, x)."""

import pytest
import torch

from bigain.tokens.grid import Cell, Grid, cell_count, cell_tokens, to_cells

GRIDS = [Grid(4, 4), Grid(4, 6), Grid(6, 2), Grid(5, 4), Grid(4, 7), Grid(5, 7), Grid(3, 3)]
CELLS = [Cell(2, 2), Cell(1, 2), Cell(2, 1), Cell(2, 3), Cell(3, 2), Cell(3, 3), Cell(1, 1)]


def cells_by_loop(grid, cell):
    """Token ids of every complete cell, row-major between and inside cells."""
    ids = []
    for i in range(grid.h // cell.h):
        for j in range(grid.w // cell.w):
            inside = []
            for p in range(cell.h * cell.w):
                dy, dx = p // cell.w, p % cell.w
                inside.append((i * cell.h + dy) * grid.w + j * cell.w + dx)
            ids.append(inside)
    return ids


def divisions():
    return [
        pytest.param(grid, cell, id=f"{grid.h}x{grid.w}-{cell.h}x{cell.w}")
        for grid in GRIDS
        for cell in CELLS
        if grid.h >= cell.h and grid.w >= cell.w
    ]


@pytest.mark.parametrize("shape", [(2, 14, 3), (2, 16, 3), (15, 3), (2, 3, 5, 4), (15,), (2, 3, 15)])
def test_check_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="3x5"):
        Grid(3, 5).check(torch.zeros(shape))


@pytest.mark.parametrize(("grid", "cell"), divisions())
def test_cell_tokens_and_count(grid, cell):
    expected = cells_by_loop(grid, cell)
    tokens = cell_tokens(grid, cell, torch.device("cpu"))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [expected]
    assert cell_count(grid, cell) == len(expected)


@pytest.mark.parametrize(("grid", "cell"), divisions())
def test_to_cells(grid, cell):
    values = torch.randn(3, grid.n, generator=torch.Generator().manual_seed(0))
    expected = [[[row[t] for t in inside] for inside in cells_by_loop(grid, cell)] for row in values.tolist()]
    assert to_cells(values, grid, cell).tolist() == expected
