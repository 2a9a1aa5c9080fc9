"""Plans with weights, against dense matrices written out by loops and against plans of copies."""

import pytest
import torch

from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import MergePlan
from bigain.tokens.weighted import RestoringPlan, SoftPlan

GRID, TILE = Grid(4, 6), Cell(2, 3)
# Two tokens stay in each of the four tiles.
DESTINATION = torch.tensor([[[0, 4], [1, 2], [3, 5], [0, 1]], [[2, 5], [0, 3], [1, 4], [2, 3]]])


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tile_tokens():
    """Token ids of each tile, by loops."""
    corners = [(y, x) for y in range(0, GRID.h, TILE.h) for x in range(0, GRID.w, TILE.w)]
    return [[(y + i) * GRID.w + x + j for i in range(TILE.h) for j in range(TILE.w)] for y, x in corners]


@pytest.fixture
def soft():
    gather, spread = rand(2, 4, 2, 6), rand(2, 4, 6, 2, seed=1)
    return SoftPlan.from_weights(DESTINATION, gather, spread, GRID, TILE)


def dense(plan, b):
    """Matrices of merging and restoring of one sequence, by loops over tiles, rows and tokens."""
    down, up = torch.zeros(8, 24), torch.zeros(24, 8)
    for t, ids in enumerate(tile_tokens()):
        for r in range(2):
            for i, token in enumerate(ids):
                down[2 * t + r, token] = plan.gather[b, t, r, i]
                up[token, 2 * t + r] = plan.spread[b, t, i, r]
    return down, up


def test_soft_plan_is_two_matrices(soft):
    x, y = rand(2, 24, 3, seed=2), rand(2, 8, 3, seed=3)
    for b in range(2):
        down, up = dense(soft, b)
        torch.testing.assert_close(soft.merge(x)[b], down @ x[b])
        torch.testing.assert_close(soft.unmerge(y)[b], up @ y[b])
        # Its indices: destinations in the order of tiles, every token at the row it is mostly restored from.
        kept = [ids[i] for ids, places in zip(tile_tokens(), DESTINATION[b].tolist(), strict=True) for i in places]
        restore = [kept.index(token) if token in kept else int(up[token].argmax()) for token in range(24)]
        gone = [token for token in range(24) if token not in kept]
        assert soft.kept[b].tolist() == kept
        assert soft.restore[b].tolist() == restore
        assert soft.removed[b].tolist() == gone
        assert soft.target[b].tolist() == [restore[token] for token in gone]


def test_with_hard_weights_it_is_the_plan_of_copies(soft):
    """Means of those that each row stands for, and copies; the rows of a plan of copies have another order."""
    hard = MergePlan.from_leaders(soft.kept.gather(1, soft.restore), 16)
    order = soft.kept.argsort(1)
    spread = torch.zeros(2, 24, 8).scatter(2, soft.restore[..., None], 1)
    places = torch.tensor(tile_tokens())
    of_tiles = torch.stack([spread[:, ids][..., 2 * t : 2 * t + 2] for t, ids in enumerate(places)], 1)
    gather = of_tiles.mT / of_tiles.sum(2)[..., None]
    plan = SoftPlan.from_weights(DESTINATION, gather, of_tiles, GRID, TILE)
    x = rand(2, 24, 3, seed=4)
    merged = plan.merge(x)
    torch.testing.assert_close(merged.gather(1, order[..., None].expand(-1, -1, 3)), hard.merge(x))
    torch.testing.assert_close(plan.unmerge(merged), hard.unmerge(hard.merge(x)))
    # The mean positions that rotary embeddings use are those of the plan of copies.
    torch.testing.assert_close(MergePlan.merge(soft, x), merged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restoring_plan_is_a_weighted_sum_of_rows(dtype):
    leader = torch.tensor([[0, 0, 2, 2, 4], [1, 1, 3, 3, 3]])
    hard = [MergePlan.from_leaders(leader[b : b + 1], int((leader[b] != torch.arange(5)).sum())) for b in range(2)]
    for plan in hard:
        generator = torch.Generator().manual_seed(11)
        near, weight = torch.randint(plan.kept.shape[1], (1, 5, 3), generator=generator), rand(1, 5, 3, seed=5)
        both = RestoringPlan(**vars(plan), rows=near, weight=weight)
        x = rand(1, 5, 4, seed=6).to(dtype)
        y = both.merge(x)
        assert torch.equal(y, plan.merge(x))
        expected = [sum(weight[0, t, m] * y[0, near[0, t, m]].float() for m in range(3)) for t in range(5)]
        restored = both.unmerge(y)
        assert restored.dtype == dtype
        torch.testing.assert_close(
            restored[0].float(), torch.stack(expected), rtol=0, atol=1e-6 if y.itemsize == 4 else 0.03
        )


def test_plans_of_rows(soft):
    x, y, rows = rand(2, 24, 3, seed=7), rand(2, 8, 3, seed=8), torch.tensor([1, 0, 1])
    near = torch.randint(8, (2, 24, 3), generator=torch.Generator().manual_seed(9))
    indices = soft.kept, soft.removed, soft.target, soft.restore, "prune"
    for plan in (soft, RestoringPlan(*indices, rows=near, weight=rand(2, 24, 3, seed=10))):
        several = plan.of_rows(rows)
        assert type(several) is type(plan)
        torch.testing.assert_close(several.merge(x[rows]), plan.merge(x)[rows])
        torch.testing.assert_close(several.unmerge(y[rows]), plan.unmerge(y)[rows])
        for name in ("kept", "removed", "target", "restore"):
            assert torch.equal(getattr(several, name), getattr(plan, name)[rows])
