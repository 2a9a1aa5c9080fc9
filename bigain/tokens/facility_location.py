"""Soft merging into tokens chosen by facility location: ToMA."""

from __future__ import annotations

import torch
from torch import Tensor

from bigain.tokens.grid import Cell, Grid, to_cells
from bigain.tokens.precision import unit_tokens
from bigain.tokens.weighted import SoftPlan

# Mutually nearest tokens have equal gains up to rounding, which must not decide between them.
_TIE = 1e-5


def facility_location(similarity: Tensor, count: int) -> Tensor:
    """Choose items that cover all others best, greedily: each adds most to `sum_i max_(j chosen) similarity_ij`.

    Args:
        similarity: Symmetric, at least -1. `(..., n, n)`, float32.
        count: Number of items, at most n.

    Returns:
        Indices, ascending; of gains that differ by up to 1e-5 the first is chosen. `(..., count)`, int64.
    """
    covered = torch.full_like(similarity[..., 0], -1)
    chosen = torch.zeros_like(covered, dtype=torch.bool)
    indices = []
    for _ in range(count):
        gain = (similarity - covered.unsqueeze(-2)).relu_().sum(-1).masked_fill_(chosen, -1)
        best = (gain >= gain.amax(-1, keepdim=True) - _TIE).int().max(-1, keepdim=True).indices
        indices.append(best)
        chosen = chosen.scatter(-1, best, True)
        covered = torch.maximum(covered, similarity.take_along_dim(best.unsqueeze(-1), -2).squeeze(-2))
    return torch.cat(indices, -1).sort(-1).values


def soft_merging(x: Tensor, grid: Grid, tile: Cell, rows: int, temperature: float) -> SoftPlan:
    """Merge the tokens of each tile into some of them by attention.

    A token distributes itself over the rows by a softmax of its cosines to their tokens, times `sqrt(c) / temperature`:
    the logits of attention between tokens of unit variance. A row is the mean of the tokens by these shares. At low
    temperature every token goes to its most similar row. It is restored as the mean of rows by its shares.

    Args:
        x: Tokens. `(b, n, c)`, any float dtype.
        grid: `(h, w)` with `h * w == n`.
        tile: Its sides divide those of the grid.
        rows: Rows of each tile.
        temperature: Positive.
    """
    units = unit_tokens(to_cells(x, grid, tile))
    similarity = (units @ units.mT).nan_to_num(nan=-1)
    destination = facility_location(similarity, rows)
    logits = similarity.take_along_dim(destination[..., None], 2) * (x.shape[2] ** 0.5 / temperature)
    shares = logits.softmax(2)
    gather = shares / shares.sum(3, keepdim=True)
    return SoftPlan.from_weights(destination, gather, shares.mT, grid, tile)
