"""Adaptive block merging, against loops over cells."""

import statistics

import pytest
import torch
from loops import cells, check_plan, tokens

from bigain.tokens.block_merging import block_merging, low_block_merging
from bigain.tokens.grid import Cell, Grid, cell_count

AGGREGATES = {"max": max, "sum": sum, "mean": statistics.fmean, "min": min, "std": statistics.pstdev}
DIVISIONS = [
    pytest.param(Grid(h, w), Cell(ch, cw), id=f"{h}x{w}-{ch}x{cw}")
    for h, w, ch, cw in [
        (4, 4, 2, 2), (4, 6, 2, 2), (5, 4, 2, 2), (5, 7, 2, 2), (6, 5, 3, 2), (4, 7, 2, 3), (3, 4, 1, 2)
    ]
]  # fmt: skip


def flat_cells(score, grid, cell, blocks, aggregate):
    """The merged cells of one row, as lists of token ids."""
    level = [AGGREGATES[aggregate]([score[t] for t in inside]) for inside in cells(grid, cell)]
    order = sorted(range(len(level)), key=lambda k: (level[k], k))
    return [cells(grid, cell)[k] for k in order[:blocks]]


def leaders(flat):
    """`{token: first token of its cell}` of the tokens that leave."""
    return {t: inside[0] for inside in flat for t in inside[1:]}


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_matches_loop(grid, cell, aggregate):
    complete, x = cell_count(grid, cell), tokens(3, grid.n, 3, seed=1)
    for blocks in sorted({1, complete // 2, complete}):
        # Ties go to the lower cell.
        for score in (tokens(3, grid.n), torch.zeros(3, grid.n)):
            plan = block_merging(score, grid, cell, blocks, aggregate)
            rows = score.double().tolist()
            check_plan(plan, x, [leaders(flat_cells(row, grid, cell, blocks, aggregate)) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype):
    """Cell means of halves are taken in float32 and rounded once."""
    grid, cell = Grid(4, 4), Cell(2, 2)
    x = (40000 + 1000 * tokens(3, 16, 5)).to(dtype)
    restored = (plan := block_merging(tokens(3, 16), grid, cell, 4)).unmerge(plan.merge(x))
    assert restored.dtype == dtype
    for inside in cells(grid, cell):
        mean = x[:, inside].double().mean(1, keepdim=True).to(dtype)
        assert torch.equal(restored[:, inside], mean.expand(-1, 4, -1))


@pytest.mark.parametrize(
    ("grid", "blocks"), [(Grid(4, 4), 0), (Grid(4, 4), -1), (Grid(4, 4), 5), (Grid(5, 5), 5), (Grid(1, 8), 1)]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_impossible_numbers_of_cells_are_refused(grid, blocks, device):
    with pytest.raises(ValueError, match=f"{blocks} of {cell_count(grid, Cell(2, 2))} cells"):
        block_merging(torch.zeros(1, grid.n, device=device), grid, Cell(2, 2), blocks)


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_cells_of_low_tokens_match_loop(grid, cell, tied):
    """The paper's rule: rows merge unlike numbers of cells, of which `block_merging` by maximum merges the first."""
    score, x, counts = tokens(6, grid.n), tokens(6, grid.n, 3, seed=1), set()
    score = score.round() if tied else score
    for low in (1, int(0.5 * grid.n), int(0.8 * grid.n), grid.n):
        plan = low_block_merging(score, grid, cell, low)
        y = plan.merge(x)
        outputs = tokens(*y.shape, seed=9)
        restored, home = plan.unmerge(y), plan.unmerge(outputs)
        assert plan.kept.shape == (6, grid.n)
        assert torch.equal(plan.key_mask(x)[:, 0] == 0, plan.present)
        for b, row in enumerate(score.double().tolist()):
            lowest = sorted(range(grid.n), key=lambda t: (row[t], t))[:low]
            flat = [inside for inside in cells(grid, cell) if set(inside) <= set(lowest)]
            counts.add(len(flat))
            expected, reads = x[b].double().clone(), list(range(grid.n))
            for inside in flat:
                expected[inside] = x[b, inside].double().mean(0)
                for t in inside:
                    reads[t] = inside[0]
            torch.testing.assert_close(restored[b].double(), expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(home[b], outputs[b, reads])
            # A row of every group is a key, once.
            assert plan.present[b].nonzero().flatten().tolist() == sorted(set(reads))
            assert tied or sorted(flat) == sorted(flat_cells(row, grid, cell, len(flat), "max"))
        part = plan.of_rows(torch.tensor([4, 4, 0]))
        assert torch.equal(part.merge(x[[4, 4, 0]]), y[[4, 4, 0]])
        assert torch.equal(part.present, plan.present[[4, 4, 0]])
    assert {0, cell_count(grid, cell)} < counts
