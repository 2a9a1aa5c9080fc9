"""Coherence, skipped tokens and their restoration, by loops."""

import pytest
import torch

from bigain.tokens.coherence import coherence, coherence_plan, max_skipped
from bigain.tokens.grid import Cell, Grid

GRIDS = [Grid(6, 8), Grid(7, 7), Grid(2, 3), Grid(9, 4)]


def tokens(grid, seed=0):
    return torch.randn(2, grid.n, 6, generator=torch.Generator().manual_seed(seed)) + 0.7


def group(grid, token, h, w):
    y, x = divmod(token, grid.w)
    return [t for t in range(grid.n) if (t // grid.w // h, t % grid.w // w) == (y // h, x // w)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [3, 16])
def test_coherence_is_the_mean_cosine_to_the_window(grid, window):
    x = tokens(grid)
    score = coherence(x, grid, window)
    for b in range(2):
        for token in range(grid.n):
            members = group(grid, token, window, window)
            expected = torch.cosine_similarity(x[b, token][None], x[b, members]).mean()
            torch.testing.assert_close(score[b, token], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "cell"),
    [(Grid(6, 8), Cell(3, 3)), (Grid(7, 7), Cell(4, 3)), (Grid(2, 3), Cell(3, 3)), (Grid(9, 4), Cell(2, 4))],
)
def test_skipped_tokens_are_restored_from_their_cell(grid, cell):
    x, y = tokens(grid, 1), tokens(grid, 2)
    for offset in (0, 5):
        score = coherence(x, grid, 3) - 0.4  # some negative
        kept = {t for t in range(grid.n) if (t // grid.w + t % grid.w - offset) % min(cell) == 0} | {grid.n - 1}
        most = grid.n - len(kept)
        assert max_skipped(grid, cell, offset) == most
        for skipped in {1, most // 2, most} - {0}:
            plan = coherence_plan(score, grid, cell, skipped, offset)
            for b in range(2):
                able = sorted(set(range(grid.n)) - kept, key=lambda t: (-score[b, t].item(), t))
                gone = sorted(able[:skipped])
                assert plan.removed[b].tolist() == gone
                stays = [t for t in range(grid.n) if t not in gone]
                assert plan.kept[b].tolist() == stays
                assert torch.equal(plan.merge(x)[b], x[b, stays])
                # Of y only the rows of retained tokens are read.
                restored = plan.unmerge(y[:, : len(stays)])[b]
                row = {t: y[b, r] for r, t in enumerate(stays)}
                for token in range(grid.n):
                    near = [t for t in group(grid, token, *cell) if t in row]
                    weights = [max(score[b, t].item(), 1e-6) for t in near]
                    mean = sum(w * row[t] for w, t in zip(weights, near, strict=True)) / sum(weights)
                    torch.testing.assert_close(restored[token], row.get(token, mean), rtol=1e-5, atol=1e-5)
                    strongest = near[weights.index(max(weights))]
                    assert stays[plan.restore[b, token]] == (token if token in row else strongest)


def test_tokens_that_are_not_numbers_give_a_plan():
    x = tokens(Grid(7, 7))
    x[:, 3:] = torch.nan
    plan = coherence_plan(coherence(x, Grid(7, 7), 3), Grid(7, 7), Cell(3, 3), 20, 0)
    assert plan.kept.shape == (2, 29)
    assert plan.restore.min() >= 0
