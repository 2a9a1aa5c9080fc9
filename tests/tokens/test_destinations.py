"""Cells and the four destination rules, against loops over cells."""

import pytest
import torch
from loops import cells, tokens

from bigain.tokens.destinations import (
    cell_destinations,
    first_destinations,
    random_destinations,
    released_destinations,
)
from bigain.tokens.grid import Cell, Grid, cell_count, cell_tokens, from_cells, to_cells
from bigain.tokens.randomness import random_integers

CPU = torch.device("cpu")
DIVISIONS = [
    pytest.param(Grid(h, w), Cell(ch, cw), id=f"{h}x{w}-{ch}x{cw}")
    for h, w, ch, cw in [
        (4, 4, 2, 2), (4, 6, 2, 2), (6, 4, 2, 2), (5, 6, 2, 2), (4, 7, 2, 2), (5, 7, 2, 2), (6, 6, 3, 2), (6, 6, 2, 3),
        (7, 8, 3, 4), (3, 6, 1, 2), (4, 3, 2, 1), (2, 2, 2, 2), (3, 3, 3, 3), (6, 2, 1, 1), (5, 4, 2, 3),
    ]
]  # fmt: skip
every_division = pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
divisible = pytest.mark.parametrize(("grid", "cell"), [p for p in DIVISIONS if p.values[0].w % p.values[1].w == 0])


def released_by_loop(s, grid, cell):
    """`p = argmin_q s[i*sy + o_q // W', o_q % W']` with `o_q = j*A + q`, as operators.md writes it."""
    width = grid.w // cell.w * cell.w
    chosen = []
    for k, inside in enumerate(cells(grid, cell)):
        i, j = divmod(k, grid.w // cell.w)
        offsets = [j * cell.area + q for q in range(cell.area)]
        values = [s[(i * cell.h + o // width) * grid.w + o % width] for o in offsets]
        chosen.append(inside[values.index(min(values))])
    return chosen


@pytest.mark.parametrize("shape", [(2, 14, 3), (2, 16, 3), (15, 3), (2, 3, 5, 4), (15,), (2, 3, 15)])
def test_check_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="3x5"):
        Grid(3, 5).check(torch.zeros(shape))


@every_division
def test_cells(grid, cell):
    expected, values = cells(grid, cell), tokens(3, grid.n)
    assert cell_tokens(grid, cell, CPU).tolist() == [expected]
    assert cell_count(grid, cell) == len(expected)
    grouped = to_cells(values, grid, cell)
    assert torch.equal(grouped, values[:, torch.tensor(expected)])
    if len(expected) * cell.area == grid.n:
        assert torch.equal(from_cells(grouped, grid, cell), values)


@every_division
def test_cell_and_first_rule(grid, cell):
    # The second rows are ties, which go to the first.
    score = torch.stack([tokens(grid.n), torch.zeros(grid.n)])
    expected = [[min(inside, key=lambda t: (row[t], t)) for inside in cells(grid, cell)] for row in score.tolist()]
    assert cell_destinations(score, grid, cell).tolist() == expected
    assert first_destinations(grid, cell, CPU).tolist() == expected[1:]


@divisible
def test_released_rule(grid, cell):
    score = torch.stack([tokens(grid.n, seed=1), torch.zeros(grid.n)])
    expected = [released_by_loop(row, grid, cell) for row in score.tolist()]
    assert released_destinations(score, grid, cell).tolist() == expected
    with pytest.raises(ValueError, match="width"):
        released_destinations(torch.zeros(1, 28), Grid(4, 7), Cell(2, 3))


@every_division
def test_random_rule(grid, cell):
    keys = torch.tensor([0, 1, -5, 2**62])
    positions = random_integers(keys, cell_count(grid, cell), cell.area).tolist()
    expected = [[inside[p] for inside, p in zip(cells(grid, cell), row, strict=True)] for row in positions]
    assert random_destinations(keys, grid, cell).tolist() == expected
