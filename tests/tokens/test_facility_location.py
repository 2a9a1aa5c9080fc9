"""ToMA's selection against a greedy algorithm that tries every candidate, and its soft merging against loops."""

import pytest
import torch

from bigain.tokens.facility_location import facility_location, soft_merging
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import MergePlan


def tokens(*shape, seed=0):
    """Clustered, as tokens of images are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(*shape[:-2], 4, shape[-1], generator=generator).repeat_interleave(shape[-2] // 4, -2)
    return centres + 0.5 * torch.randn(*shape, generator=generator)


def greedy_by_loop(similarity, count):
    """Add the item with which the objective `sum_i max_j` is largest, from scratch each time."""
    chosen = []
    for _ in range(count):
        best, choice = None, None
        for candidate in (j for j in range(len(similarity)) if j not in chosen):
            value = sum(max(row[j] for j in [*chosen, candidate]) for row in similarity)
            if best is None or value > best + 1e-7:
                best, choice = value, candidate
        chosen.append(choice)
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 5, 9, 12])
def test_selection_is_the_greedy_one(count):
    x = torch.nn.functional.normalize(tokens(2, 3, 12, 6), dim=-1)
    similarity = x @ x.mT
    chosen = facility_location(similarity, count)
    assert chosen.shape == (2, 3, count)
    for i, of_row in enumerate(similarity.double().tolist()):
        for t, matrix in enumerate(of_row):
            assert chosen[i, t].tolist() == greedy_by_loop(matrix, count)


def test_equal_gains_go_to_the_first():
    """Rounding does not decide between tokens that are each other's nearest, or between equal ones."""
    x = torch.nn.functional.normalize(tokens(16, 24, 6), dim=-1)
    similarity = (x @ x.mT).double()
    assert torch.equal(facility_location(similarity, 20), facility_location(similarity.float(), 20))
    assert facility_location(torch.ones(6, 6), 4).tolist() == [0, 1, 2, 3]


def test_weights_by_loop():
    grid, tile, rows = Grid(4, 6), Cell(4, 3), 5
    x = tokens(2, 24, 8, seed=1)
    plan = soft_merging(x, grid, tile, rows, 0.7)
    for b in range(2):
        for t in range(2):
            ids = [y * 6 + 3 * t + i for y in range(4) for i in range(3)]
            unit = torch.nn.functional.normalize(x[b, ids].double(), dim=1)
            chosen = greedy_by_loop((unit @ unit.T).tolist(), rows)
            assert plan.kept[b, t * rows : (t + 1) * rows].tolist() == [ids[i] for i in chosen]
            # Each token distributes itself over the rows.
            shares = torch.stack([(8**0.5 / 0.7 * unit[chosen] @ unit[i]).exp() for i in range(12)], 1)
            shares /= shares.sum(0)
            torch.testing.assert_close(plan.spread[b, t].double(), shares.T, rtol=1e-5, atol=1e-6)
            gather = shares / shares.sum(1, keepdim=True)
            torch.testing.assert_close(plan.gather[b, t].double(), gather, rtol=1e-5, atol=1e-6)


def test_at_low_temperature_it_copies():
    """Each row is the mean of the tokens nearest to its own, and they all read it."""
    x = tokens(3, 24, 16, seed=2)
    plan = soft_merging(x, Grid(4, 6), Cell(4, 6), 10, 1e-4)
    hard = MergePlan.from_leaders(plan.kept.gather(1, plan.restore), 14)
    torch.testing.assert_close(plan.merge(x), hard.merge(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.unmerge(plan.merge(x)), hard.unmerge(hard.merge(x)), atol=1e-4, rtol=0)


def test_tokens_that_are_not_numbers_give_a_plan():
    x = tokens(1, 24, 4)
    x[:, ::2] = torch.nan
    plan = soft_merging(x, Grid(4, 6), Cell(4, 6), 6, 1.0)
    assert len(plan.kept.unique()) == 6
    assert sorted([*plan.kept[0].tolist(), *plan.removed[0].tolist()]) == list(range(24))
