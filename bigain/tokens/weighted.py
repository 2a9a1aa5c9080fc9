"""Plans beyond copies: soft merging by matrix products, and tokens restored from several rows.

The indices of such a plan are those of the closest plan that only copies. Pictures, rotary positions and the sizes of
rows read the indices; `merge` and `unmerge` use the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.grid import Cell, Grid, from_cells, to_cells
from bigain.tokens.matching import MergePlan, sources_of
from bigain.tokens.precision import without_autocast


@dataclass(frozen=True, kw_only=True)
class SoftPlan(MergePlan):
    """Rows are weighted sums of the tokens of a tile, and tokens are restored from all rows of their tile.

    The merged sequence is ordered by tile. `restore` is each token's row of largest weight; a destination's is its own.

    Attributes:
        grid: The token map.
        tile: Size of the tiles, which fill the map.
        gather: Weights of merging. `(b, tiles, k / tiles, n / tiles)`, float32.
        spread: Weights of restoring. `(b, tiles, n / tiles, k / tiles)`, float32.
    """

    grid: Grid
    tile: Cell
    gather: Tensor
    spread: Tensor

    @classmethod
    def from_weights(cls, destination: Tensor, gather: Tensor, spread: Tensor, grid: Grid, tile: Cell) -> SoftPlan:
        """Build a plan from its weights and the grid (see the class), and from the destination token of each row.

        `destination` holds positions inside the tile. `(b, tiles, k / tiles)`, int64.
        """
        b, tiles, rows = destination.shape
        token = to_cells(torch.arange(grid.n, device=destination.device).expand(b, -1), grid, tile)
        kept = token.gather(2, destination).flatten(1)
        row = torch.arange(rows, device=destination.device).expand_as(destination)
        nearest = spread.max(3).indices.scatter(2, destination, row)
        first = torch.arange(tiles, device=destination.device)[:, None] * rows
        restore = from_cells(nearest + first, grid, tile)
        removed = sources_of(kept, grid.n)
        indices = kept, removed, restore.gather(1, removed), restore
        return cls(*indices, grid=grid, tile=tile, gather=gather, spread=spread)

    def merge(self, x: Tensor) -> Tensor:
        return _weighted_sum(self.gather, to_cells(x, self.grid, self.tile)).flatten(1, 2)

    def unmerge(self, y: Tensor) -> Tensor:
        rows = y.unflatten(1, self.gather.shape[1:3])
        return from_cells(_weighted_sum(self.spread, rows), self.grid, self.tile)


def _weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    with without_autocast(x):
        return weights.to(x.dtype) @ x


@dataclass(frozen=True, kw_only=True)
class RestoringPlan(MergePlan):
    """Merges as its mode says; a token is restored as a weighted sum of rows.

    Attributes:
        rows: Rows that a token is restored from. `(b, n, m)`, int64.
        weight: Their weights. `(b, n, m)`, float32.
    """

    rows: Tensor
    weight: Tensor

    def unmerge(self, y: Tensor) -> Tensor:
        b, k, c = y.shape
        flat_rows = self.rows + torch.arange(b, device=y.device)[:, None, None] * k
        weight = self.weight.to(y.dtype).flatten(0, 1)
        restored = F.embedding_bag(flat_rows.flatten(0, 1), y.reshape(b * k, c), per_sample_weights=weight, mode="sum")
        return restored.view(b, -1, c)
