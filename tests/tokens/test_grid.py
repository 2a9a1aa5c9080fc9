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


def test_grid_is_height_then_width():
    grid = Grid(3, 5)
    assert (grid.h, grid.w, grid.n) == (3, 5, 15)
    assert grid == (3, 5)
    assert Grid(h=3, w=5) == grid


def test_cell_is_height_then_width():
    assert Cell(2, 3) == (2, 3)
    assert Cell(2, 3).area == 6


@pytest.mark.parametrize("b", [1, 3])
def test_check_accepts_a_full_grid(b):
    Grid(3, 5).check(torch.zeros(b, 15, 2))


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
@pytest.mark.parametrize("b", [1, 3])
def test_to_cells(grid, cell, b):
    values = torch.randn(b, grid.n, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    rows = values.tolist()
    expected = [[[row[t] for t in inside] for inside in cells_by_loop(grid, cell)] for row in rows]
    assert to_cells(values, grid, cell).tolist() == expected
    assert torch.equal(values, before)


def test_to_cells_takes_strided_values():
    """Values that are not contiguous group like their copy."""
    values = torch.arange(60.0).view(20, 3).t()
    assert torch.equal(to_cells(values, Grid(4, 5), Cell(2, 2)), to_cells(values.contiguous(), Grid(4, 5), Cell(2, 2)))


@pytest.mark.parametrize(
    ("grid", "cell", "count"), [(Grid(1, 4), Cell(2, 2), 0), (Grid(4, 2), Cell(2, 3), 0), (Grid(9, 7), Cell(2, 2), 12)]
)
def test_cell_count_ignores_leftover_strips(grid, cell, count):
    assert cell_count(grid, cell) == count


def test_meta_device():
    tokens = cell_tokens(Grid(5, 7), Cell(2, 2), torch.device("meta"))
    assert tokens.device.type == "meta"
    assert tokens.shape == (1, 6, 4)
    assert to_cells(torch.empty(3, 35, device="meta"), Grid(5, 7), Cell(2, 2)).shape == (3, 6, 4)
