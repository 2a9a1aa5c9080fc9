"""Adaptive block merging, against loops over cells."""

import statistics

import pytest
import torch

from bigain.tokens.block_merging import block_merging, low_block_merging
from bigain.tokens.grid import Cell, Grid, cell_count

AGGREGATES = {"max": max, "sum": sum, "mean": statistics.fmean, "min": min, "std": statistics.pstdev}
DIVISIONS = [
    pytest.param(Grid(h, w), Cell(ch, cw), id=f"{h}x{w}-{ch}x{cw}")
    for h, w, ch, cw in [
        (4, 4, 2, 2), (4, 6, 2, 2), (5, 4, 2, 2), (5, 7, 2, 2), (6, 5, 3, 2), (4, 7, 2, 3), (3, 4, 1, 2)
    ]
]  # fmt: skip


def scores_of(b, grid, seed=0):
    return torch.randn(b, grid.n, generator=torch.Generator().manual_seed(seed))


def tokens(b, n, c, seed=1, dtype=torch.float32):
    return torch.randn(b, n, c, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cells(grid, cell):
    return [
        [(i * cell.h + dy) * grid.w + j * cell.w + dx for dy in range(cell.h) for dx in range(cell.w)]
        for i in range(grid.h // cell.h)
        for j in range(grid.w // cell.w)
    ]


def flat_cells(score, grid, cell, blocks, aggregate):
    """The merged cells of one row, as lists of token ids."""
    level = [AGGREGATES[aggregate]([score[t] for t in inside]) for inside in cells(grid, cell)]
    order = sorted(range(len(level)), key=lambda k: (level[k], k))
    return [cells(grid, cell)[k] for k in order[:blocks]]


def check(plan, x, flat):
    y = plan.merge(x)
    outputs = tokens(*y.shape, seed=9)
    restored, home = plan.unmerge(y), plan.unmerge(outputs)
    assert plan.mode == "mean"
    for b, merged in enumerate(flat):
        expected = x[b].double().clone()
        for inside in merged:
            expected[inside] = sum(x[b, t].double() for t in inside) / len(inside)
        torch.testing.assert_close(restored[b].double(), expected, rtol=1e-5, atol=1e-6)
        gone = {t for inside in merged for t in inside}
        alone = set(range(x.shape[1])) - gone
        assert alone <= set(plan.kept[b].tolist())
        assert len(plan.kept[b]) == len(alone) + len(merged)
        assert set(plan.removed[b].tolist()) <= gone
        assert torch.equal(y[b, [plan.kept[b].tolist().index(t) for t in alone]], x[b, list(alone)])
        # Every token of a flat cell reads the same row, which no token outside reads.
        reads = plan.restore[b].tolist()
        assert sorted(set(reads)) == list(range(y.shape[1]))
        for inside in merged:
            assert len({reads[t] for t in inside}) == 1
        assert torch.equal(home[b], outputs[b, reads])


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_matches_loop(grid, cell, aggregate):
    score, x = scores_of(3, grid), tokens(3, grid.n, 3)
    complete = cell_count(grid, cell)
    for blocks in sorted({1, complete // 2, complete}):
        plan = block_merging(score, grid, cell, blocks, aggregate)
        assert plan.kept.shape == (3, grid.n - blocks * (cell.area - 1))
        assert plan.removed.shape == (3, blocks * (cell.area - 1))
        check(plan, x, [flat_cells(row, grid, cell, blocks, aggregate) for row in score.double().tolist()])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ties_go_to_the_lower_cell(aggregate):
    grid, cell = Grid(4, 6), Cell(2, 2)
    plan = block_merging(torch.zeros(2, grid.n), grid, cell, 3, aggregate)
    check(plan, tokens(2, grid.n, 3), [cells(grid, cell)[:3]] * 2)


def test_leftover_strips_are_kept():
    """The strips score lowest here, and still no token of them leaves."""
    grid, cell = Grid(5, 7), Cell(2, 2)
    score = scores_of(1, grid, seed=3).abs().view(5, 7)
    score[4] = score[:, 6] = -100
    plan = block_merging(score.view(1, 35), grid, cell, cell_count(grid, cell))
    strips = {t for t in range(35) if t // 7 == 4 or t % 7 == 6}
    assert strips <= set(plan.kept[0].tolist())
    assert plan.kept.shape == (1, 6 + len(strips))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype):
    """Cell means of halves are taken in float32 and rounded once."""
    grid, cell = Grid(4, 4), Cell(2, 2)
    x = (40000 + 1000 * tokens(3, 16, 5)).to(dtype)
    restored = (plan := block_merging(scores_of(3, grid), grid, cell, 4)).unmerge(plan.merge(x))
    assert restored.dtype == dtype
    for b in range(3):
        for inside in cells(grid, cell):
            mean = x[b, inside].double().mean(0).to(dtype)
            assert torch.equal(restored[b, inside], mean.expand(4, -1))


@pytest.mark.parametrize(
    ("grid", "cell", "blocks"),
    [
        (Grid(4, 4), Cell(2, 2), 0),
        (Grid(4, 4), Cell(2, 2), -1),
        (Grid(4, 4), Cell(2, 2), 5),
        (Grid(5, 5), Cell(2, 2), 5),
        (Grid(1, 8), Cell(2, 2), 1),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_impossible_numbers_of_cells_are_refused(grid, cell, blocks, device):
    with pytest.raises(ValueError, match=f"{blocks} of {cell_count(grid, cell)} cells"):
        block_merging(torch.zeros(1, grid.n, device=device), grid, cell, blocks)


def low_cells(score, grid, cell, low):
    lowest = sorted(range(grid.n), key=lambda t: (score[t], t))[:low]
    return [inside for inside in cells(grid, cell) if set(inside) <= set(lowest)]


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_cells_of_low_tokens_match_loop(grid, cell, tied):
    """The paper's rule: rows merge unlike numbers of cells, of which `block_merging` by maximum merges the first."""
    score, x, counts = scores_of(6, grid), tokens(6, grid.n, 3), set()
    score = score.round() if tied else score
    for low in (1, int(0.5 * grid.n), int(0.8 * grid.n), grid.n):
        plan = low_block_merging(score, grid, cell, low)
        y = plan.merge(x)
        outputs = tokens(*y.shape, seed=9)
        restored, home = plan.unmerge(y), plan.unmerge(outputs)
        assert plan.kept.shape == (6, grid.n)
        assert torch.equal(plan.key_mask(x)[:, 0] == 0, plan.present)
        for b, row in enumerate(score.double().tolist()):
            flat = low_cells(row, grid, cell, low)
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
            ours = flat_cells(row, grid, cell, len(flat), "max")
            assert tied or sorted(flat) == sorted(ours)
            assert len(flat) <= low // cell.area
        part = plan.of_rows(torch.tensor([4, 4, 0]))
        assert torch.equal(part.merge(x[[4, 4, 0]]), y[[4, 4, 0]])
        assert torch.equal(part.present, plan.present[[4, 4, 0]])
    assert {0, cell_count(grid, cell)} < counts
