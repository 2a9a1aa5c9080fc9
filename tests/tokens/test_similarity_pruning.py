"""SiTo's prune and recover, against loops over the cosine graph."""

import pytest
import torch
from loops import cells, check_plan, tokens, unit

from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.similarity_pruning import similarity_pruning

DIVISIONS = [
    pytest.param(Grid(h, w), Cell(ch, cw), id=f"{h}x{w}-{ch}x{cw}")
    for h, w, ch, cw in [(4, 4, 2, 2), (4, 6, 2, 2), (5, 4, 2, 2), (5, 5, 2, 2), (6, 4, 3, 2), (3, 6, 1, 3)]
]  # fmt: skip


def base_tokens(graph, noise, grid, cell, noise_alpha, sim_beta):
    score = [sim_beta * sum(row) + noise_alpha * e for row, e in zip(graph, noise, strict=True)]
    return [max(inside, key=lambda t: (score[t], -t)) for inside in cells(grid, cell)]


def pruning_by_loop(rows, noise, grid, cell, removed, noise_alpha, sim_beta):
    """`{pruned token: kept token it copies}` of one row."""
    units = [unit(row) for row in rows]
    graph = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in units] for u in units]
    base = base_tokens(graph, noise, grid, cell, noise_alpha, sim_beta)
    others = [t for t in range(grid.n) if t not in base]
    pruned = sorted(others, key=lambda t: (-max(graph[t][d] for d in base), t))[:removed]
    kept = [t for t in range(grid.n) if t not in pruned]
    return {t: max(kept, key=lambda k: (graph[t][k], -k)) for t in pruned}


@pytest.mark.parametrize(("grid", "cell"), DIVISIONS)
@pytest.mark.parametrize(("noise_alpha", "sim_beta"), [(0.1, 1.0), (0.0, 1.0), (3.0, 0.5), (1.0, 0.0)])
def test_matches_loop(grid, cell, noise_alpha, sim_beta):
    """From one pruned token to all that are no base tokens; leftover strips hold no base tokens."""
    metric, noise, x = tokens(3, grid.n, 5), tokens(3, grid.n, seed=1), tokens(3, grid.n, 3, seed=2)
    sources = grid.n - cell_count(grid, cell)
    for removed in (1, sources // 2, sources):
        plan = similarity_pruning(metric, noise, grid, cell, removed, noise_alpha, sim_beta)
        assert plan.kept.shape == (3, grid.n - removed)
        rows = zip(metric.double().tolist(), noise.double().tolist(), strict=True)
        check_plan(
            plan, x, [pruning_by_loop(m, e, grid, cell, removed, noise_alpha, sim_beta) for m, e in rows], "prune"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_graph_of_other_dtypes_is_float32(dtype):
    """Upstream's float16 graph loses the noise; here halves give the plan of the same numbers in float32."""
    grid, cell = Grid(6, 6), Cell(2, 2)
    metric, noise = tokens(3, grid.n, 8, seed=3).bfloat16().to(dtype), tokens(3, grid.n, seed=4)
    plan = similarity_pruning(metric, noise, grid, cell, 18, 0.1, 1.0)
    rows = zip(metric.double().tolist(), noise.double().tolist(), strict=True)
    check_plan(
        plan,
        tokens(3, grid.n, 2, dtype=dtype),
        [pruning_by_loop(m, e, grid, cell, 18, 0.1, 1.0) for m, e in rows],
        "prune",
    )


def test_pruned_tokens_may_copy_tokens_that_are_no_base():
    """Recovery looks at all kept tokens, not at the base tokens that pruning looked at."""
    # Base tokens by noise: 0 and 2. Token 1 is near base token 0 and nearer to token 5, which is kept.
    angle = torch.tensor([0.0, 30.0, 180.0, 200.0, 90.0, 45.0, 150.0, 120.0]).deg2rad()
    metric = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    noise = torch.zeros(1, 8)
    noise[0, 0] = noise[0, 2] = 1.0
    plan = similarity_pruning(metric, noise, Grid(2, 4), Cell(2, 2), 2, 1.0, 0.0)
    check_plan(plan, tokens(1, 8, 3), [{3: 2, 1: 5}], "prune")


def test_ties_go_to_lower_indices():
    """In a constant map the first token of each cell is its base, and the first others copy token 0."""
    metric = torch.tensor([0.0, 1.0]).repeat(2, 16, 1)
    plan = similarity_pruning(metric, torch.zeros(2, 16), Grid(4, 4), Cell(2, 2), 5, 0.1, 1.0)
    check_plan(plan, tokens(2, 16, 3), [dict.fromkeys([1, 3, 4, 5, 6], 0)] * 2, "prune")
