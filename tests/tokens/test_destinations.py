"""The four destination rules, against loops over cells."""

import pytest
import torch

from bigain.tokens.destinations import (
    cell_destinations,
    first_destinations,
    random_destinations,
    released_destinations,
)
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.randomness import random_integers

CPU = torch.device("cpu")
DIVISIONS = [
    pytest.param(grid, cell, id=f"{grid.h}x{grid.w}-{cell.h}x{cell.w}")
    for grid, cell in [
        (Grid(4, 4), Cell(2, 2)),
        (Grid(4, 6), Cell(2, 2)),
        (Grid(6, 4), Cell(2, 2)),
        (Grid(5, 6), Cell(2, 2)),
        (Grid(4, 7), Cell(2, 2)),
        (Grid(5, 7), Cell(2, 2)),
        (Grid(6, 6), Cell(3, 2)),
        (Grid(6, 6), Cell(2, 3)),
        (Grid(7, 8), Cell(3, 4)),
        (Grid(3, 6), Cell(1, 2)),
        (Grid(4, 3), Cell(2, 1)),
        (Grid(2, 2), Cell(2, 2)),
    ]
]
every_division = pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
divisible = pytest.mark.parametrize(("grid", "cell"), [p for p in DIVISIONS if p.values[0].w % p.values[1].w == 0])


def scores_of(b, grid, seed=0):
    return torch.randn(b, grid.n, generator=torch.Generator().manual_seed(seed))


def cells(grid, cell):
    return [(i, j) for i in range(grid.h // cell.h) for j in range(grid.w // cell.w)]


def token(grid, cell, i, j, p):
    return (i * cell.h + p // cell.w) * grid.w + j * cell.w + p % cell.w


def first_least(values):
    return min(range(len(values)), key=lambda q: (values[q], q))


def cell_by_loop(s, grid, cell):
    chosen = []
    for i, j in cells(grid, cell):
        inside = [token(grid, cell, i, j, p) for p in range(cell.area)]
        chosen.append(inside[first_least([s[t] for t in inside])])
    return chosen


def released_by_loop(s, grid, cell):
    """`p = argmin_q s[i*sy + o_q // W', o_q % W']` with `o_q = j*A + q`, as operators.md writes it."""
    width = grid.w // cell.w * cell.w
    chosen = []
    for i, j in cells(grid, cell):
        offsets = [j * cell.area + q for q in range(cell.area)]
        values = [s[(i * cell.h + o // width) * grid.w + o % width] for o in offsets]
        chosen.append(token(grid, cell, i, j, first_least(values)))
    return chosen


@every_division
def test_cell_rule(grid, cell):
    score = scores_of(3, grid)
    chosen = cell_destinations(score, grid, cell)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [cell_by_loop(row, grid, cell) for row in score.tolist()]


@divisible
def test_released_rule(grid, cell):
    score = scores_of(3, grid, seed=1)
    chosen = released_destinations(score, grid, cell)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [released_by_loop(row, grid, cell) for row in score.tolist()]


@every_division
def test_first_rule(grid, cell):
    chosen = first_destinations(grid, cell, CPU)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [[i * cell.h * grid.w + j * cell.w for i, j in cells(grid, cell)]]


@every_division
def test_random_rule(grid, cell):
    keys = torch.tensor([0, 1, -5, 2**62])
    chosen = random_destinations(keys, grid, cell)
    assert chosen.dtype == torch.int64
    positions = random_integers(keys, len(cells(grid, cell)), cell.area).tolist()
    for row, drawn in zip(chosen.tolist(), positions, strict=True):
        assert row == [token(grid, cell, i, j, p) for (i, j), p in zip(cells(grid, cell), drawn, strict=True)]


@pytest.mark.parametrize(("grid", "cell"), [(Grid(4, 5), Cell(2, 2)), (Grid(4, 7), Cell(2, 3))])
def test_released_rule_needs_a_divisible_width(grid, cell):
    with pytest.raises(ValueError, match="width"):
        released_destinations(torch.zeros(1, grid.n), grid, cell)


@pytest.mark.parametrize("rule", [cell_destinations, released_destinations])
def test_ties_go_to_the_first_position(rule):
    grid, cell = Grid(4, 6), Cell(2, 2)
    assert torch.equal(rule(torch.zeros(2, grid.n), grid, cell), first_destinations(grid, cell, CPU).expand(2, -1))
