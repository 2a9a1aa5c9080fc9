"""Merge plans and bipartite matching, against loops and against tomesd."""

import math

import pytest
import tomesd
import torch
from loops import check_plan, tokens, unit

from bigain.tokens.destinations import cell_destinations, first_destinations
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.matching import MergePlan, bipartite_matching
from bigain.tokens.scores import laplacian_l1

CPU = torch.device("cpu")
MODES = ["mean", "prune", "mlerp"]
DIVISIONS = [
    pytest.param(Grid(h, w), Cell(ch, cw), id=f"{h}x{w}-{ch}x{cw}")
    for h, w, ch, cw in [
        (4, 4, 2, 2), (4, 6, 2, 2), (5, 4, 2, 2), (4, 5, 2, 2), (5, 7, 2, 2), (6, 4, 3, 2), (5, 6, 2, 3), (3, 5, 1, 2)
    ]
]  # fmt: skip


def matching_by_loop(metric, destinations, removed, detail=None, low=None):
    """`{source: destination}` of the merged sources of one row; only the `low` of least detail may merge."""
    units = [unit(v) for v in metric]
    matches = []
    sources = sorted(set(range(len(units))) - set(destinations))
    for s in sources if low is None else sorted(sources, key=lambda t: (detail[t], t))[:low]:
        best, choice = -math.inf, None
        for d in destinations:
            similarity = sum(a * b for a, b in zip(units[s], units[d], strict=True))
            if similarity > best:
                best, choice = similarity, d
        matches.append((-best, s, choice))
    return {s: d for _, s, d in sorted(matches)[:removed]}


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_matches_loop_for_destinations_per_row(grid, cell, mode, share):
    """From one removed source to all; the leftover strips hold sources only."""
    metric, x = tokens(3, grid.n, 6), tokens(3, grid.n, 3, seed=1)
    destination = cell_destinations(laplacian_l1(metric, grid), grid, cell)
    removed = max(1, int((grid.n - cell_count(grid, cell)) * share))
    plan = bipartite_matching(metric, destination, removed, mode)
    rows = zip(metric.double().tolist(), destination.tolist(), strict=True)
    check_plan(plan, x, [matching_by_loop(m, d, removed) for m, d in rows], mode)
    assert plan.kept.shape == (3, grid.n - removed)


@pytest.mark.parametrize("mode", MODES)
def test_shared_destinations(mode):
    """Destinations `(1, m)` serve every row, exactly like a copy per row."""
    grid, cell, removed = Grid(5, 6), Cell(2, 2), 13
    metric, x = tokens(3, grid.n, 5, seed=2), tokens(3, grid.n, 5, seed=3)
    shared = first_destinations(grid, cell, CPU)
    plan = bipartite_matching(metric, shared, removed, mode)
    check_plan(plan, x, [matching_by_loop(m, shared[0].tolist(), removed) for m in metric.double().tolist()], mode)
    copied = bipartite_matching(metric, shared.repeat(3, 1), removed, mode)
    assert torch.equal(plan.kept, copied.kept)
    assert torch.equal(plan.restore, copied.restore)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_metric_of_other_dtypes(dtype):
    """Similarities are float32: a half metric gives the plan of the same numbers in float32."""
    grid, cell = Grid(6, 6), Cell(2, 2)
    metric = tokens(2, grid.n, 5, seed=4).half().to(dtype)
    destination = first_destinations(grid, cell, CPU)
    plan = bipartite_matching(metric, destination, 20)
    expected = [matching_by_loop(m, destination[0].tolist(), 20) for m in metric.double().tolist()]
    check_plan(plan, tokens(2, grid.n, 2, seed=5), expected, "mean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_halves_are_summed_in_float32(dtype):
    """Thirteen tokens of 30,000 overflow a float16 sum but not their mean, which is rounded once."""
    grid = Grid(4, 4)
    metric = torch.tensor([1.0, 0.0]).repeat(1, grid.n, 1)
    plan = bipartite_matching(metric, first_destinations(grid, Cell(2, 2), CPU), 12)
    x = (30000 + 1000 * tokens(1, grid.n, 4, seed=6)).to(dtype)
    y = plan.merge(x)
    assert y.dtype == dtype
    group = [0, *plan.removed[0].tolist()]
    assert torch.equal(y[0, 0], x[0, group].double().mean(0).to(dtype))
    assert torch.equal(y[0, 1:], x[0, [2, 8, 10]])


@pytest.mark.parametrize("mode", MODES)
def test_equal_similarities_go_to_lower_indices(mode):
    """In a constant map every similarity is exactly 1: the first sources merge into the first destination."""
    metric = torch.tensor([0.0, 1.0, 0.0]).repeat(2, 16, 1)
    plan = bipartite_matching(metric, first_destinations(Grid(4, 4), Cell(2, 2), CPU), 5, mode)
    check_plan(plan, tokens(2, 16, 3, seed=8), [dict.fromkeys([1, 3, 4, 5, 6], 0)] * 2, mode)


def test_zero_tokens_have_cosine_zero():
    """A zero source is merged after sources of positive and before sources of negative similarity."""
    metric = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]])
    x = tokens(1, 4, 2, seed=14)
    for removed, merged in [(1, {3: 0}), (2, {3: 0, 1: 0}), (3, {3: 0, 1: 0, 2: 0})]:
        check_plan(bipartite_matching(metric, torch.tensor([[0]]), removed), x, [merged], "mean")


@pytest.mark.parametrize("removed", [-1, 0, 13, 16])
def test_impossible_removals_are_refused(removed):
    """Twelve of sixteen tokens are sources; a plan that removes none or more does not exist."""
    with pytest.raises(ValueError, match=f"{removed} of 12"):
        bipartite_matching(tokens(1, 16, 4), first_destinations(Grid(4, 4), Cell(2, 2), CPU), removed)


@pytest.mark.parametrize("mode", MODES)
def test_plan_from_leaders(mode):
    leader = torch.tensor([[0, 0, 2, 5, 4, 5], [5, 1, 2, 3, 5, 5]])
    merged = [{1: 0, 3: 5}, {0: 5, 4: 5}]
    before = leader.clone()
    plan = MergePlan.from_leaders(leader, 2, mode)
    check_plan(plan, tokens(2, 6, 3, seed=17), merged, mode)
    assert plan.kept.tolist() == [[0, 2, 4, 5], [1, 2, 3, 5]]
    assert plan.restore.tolist() == [[0, 0, 1, 3, 2, 3], [3, 0, 1, 2, 3, 3]]
    assert torch.equal(leader, before)


@pytest.mark.parametrize(("h", "w"), [(4, 4), (6, 4), (4, 10), (8, 8)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_restored_output_equals_tomesd(h, w, share):
    """Upstream ToMe without randomness takes the top-left token of each cell; row order inside differs."""
    x, removed = tokens(3, h * w, 8, seed=20), int(h * w * share)
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(x, w, h, 2, 2, removed, no_rand=True)
    plan = bipartite_matching(x, first_destinations(Grid(h, w), Cell(2, 2), CPU), removed)
    theirs, ours = merge(x), plan.merge(x)
    assert theirs.shape == ours.shape
    torch.testing.assert_close(plan.unmerge(ours), unmerge(theirs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.sum(1), theirs.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_gate_matches_loop(grid, cell, tied):
    """Sources of high detail stay, however similar; with as many as merge, detail alone decides."""
    metric, x, detail = tokens(3, grid.n, 6), tokens(3, grid.n, 3, seed=1), tokens(3, grid.n, 1, seed=2)[..., 0]
    detail = detail.round() if tied else detail
    destination = cell_destinations(detail, grid, cell)
    sources = grid.n - cell_count(grid, cell)
    removed, ungated = sources // 2, bipartite_matching(metric, destination, sources // 2)
    for low in (removed, (removed + sources) // 2, sources):
        plan = bipartite_matching(metric, destination, removed, gate=(detail, low))
        parts = zip(metric.double().tolist(), destination.tolist(), detail.tolist(), strict=True)
        check_plan(plan, x, [matching_by_loop(m, d, removed, s, low) for m, d, s in parts], "mean")
        assert torch.equal(plan.kept, ungated.kept) == (low == sources)
    with pytest.raises(ValueError, match=f"cannot merge {removed} of {sources}"):
        bipartite_matching(metric, destination, removed, gate=(detail, removed - 1))
