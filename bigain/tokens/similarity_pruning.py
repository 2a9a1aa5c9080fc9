"""SiTo's pruning: tokens that resemble a representative token are dropped and restored by copying."""

from __future__ import annotations

import torch
from torch import Tensor

from bigain.tokens.destinations import cell_destinations
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.matching import MergePlan
from bigain.tokens.precision import unit_tokens, without_autocast

# Elements of the cosine graphs held at a time: four rows at SD 2.0's 4,096 tokens.
_BLOCK = 2**26


def similarity_pruning(
    metric: Tensor, noise: Tensor, grid: Grid, cell: Cell, removed: int, noise_alpha: float, sim_beta: float
) -> MergePlan:
    """Plan to prune the tokens nearest to a base token (SiTo; Zhang et al., AAAI 2025).

    Args:
        metric: Tokens. `(b, n, c)`, any float dtype; the cosine graph is computed in float32.
        noise: Standard normal draws. `(b, n)`, float32.
        grid: `(h, w)` with `h * w == n`.
        cell: One base token per complete cell: the argmax of `sim_beta * rowsum(cosines) + noise_alpha * noise`.
        removed: Tokens to prune, at most those that are not base tokens.
        noise_alpha: Weight of the noise.
        sim_beta: Weight of the similarity.

    Returns:
        A plan in mode `prune`; every pruned token copies the most similar kept one.

    Raises:
        ValueError: If `removed` is not in 1..n - cells.
    """
    n = metric.shape[1]
    if not 1 <= removed <= n - cell_count(grid, cell) < n:
        raise ValueError(f"cannot prune {removed} of {n} tokens with {cell_count(grid, cell)} base tokens")
    # The graph is quadratic: in blocks of rows, so that memory does not grow with the batch.
    rows = max(1, _BLOCK // (n * n))
    leaders = []
    for x, draws in zip(metric.split(rows), noise.split(rows), strict=True):
        unit = unit_tokens(x)
        with without_autocast(x):
            graph = unit @ unit.transpose(1, 2)
        score = sim_beta * graph.sum(2) + noise_alpha * draws
        base = cell_destinations(-score, grid, cell)
        nearest = graph.gather(1, base[..., None].expand(-1, -1, n)).amax(1)
        # Base tokens sort last, so that they are never pruned.
        nearest = nearest.scatter(1, base, -torch.inf)
        pruned = nearest.argsort(dim=1, descending=True, stable=True)[:, :removed]
        is_pruned = torch.zeros_like(nearest, dtype=torch.bool).scatter_(1, pruned, True)
        candidates = graph.gather(1, pruned[..., None].expand(-1, -1, n)).masked_fill(is_pruned[:, None], -torch.inf)
        leader = torch.arange(n, device=x.device).repeat(len(x), 1)
        leaders.append(leader.scatter_(1, pruned, candidates.argmax(2)))
    return MergePlan.from_leaders(torch.cat(leaders), removed, "prune")
