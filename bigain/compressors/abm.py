"""ABM: replace the flattest cells by their mean, with no matching."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.merging import CellMerger
from bigain.errors import InputError
from bigain.tokens.block_merging import Aggregate, block_merging
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Grid, cell_count
from bigain.tokens.matching import MergePlan
from bigain.tokens.scores import laplacian_l1


class ABM(CellMerger):
    """Adaptive block merging on the Laplacian score.

    Source: BiGain (CVPR 2026), Algorithm 3.
    Cost: `2 * 9 * n * c` FLOPs per site for the Laplacian; the release scores twice.
    """

    def __init__(
        self, *, ratio: float | None = None, tau: float | None = None, aggregate: Aggregate = "max", **kwargs: Any
    ) -> None:
        """Set the method up; give exactly one of `ratio` and `tau`.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area]; rounded down to whole cells.
            tau: Fraction of the complete cells merged, in (0, 1]: the quantile of the cell scores.
            aggregate: How token scores become a cell score; `max` is the paper's formula.
            kwargs: See the base classes.
        """
        if (ratio is None) == (tau is None):
            raise InputError(f"ABM takes exactly one of ratio and tau, got ratio={ratio} and tau={tau}")
        if tau is not None and not 0 < tau <= 1:
            raise InputError(f"tau must be above 0 and at most 1, not {tau}")
        if aggregate not in ("max", "sum", "mean"):
            raise InputError(f"aggregate must be max, sum or mean, not {aggregate!r}")
        super().__init__(ratio=ratio, **kwargs)
        self.tau = tau
        self.aggregate: Aggregate = aggregate

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        blocks = self._blocks(grid, site)
        if kernels_serve(x):
            from bigain.tokens.kernels import plans

            tables = plans.blocks(x, grid, self.cell, blocks, self.aggregate)
            return plans.KernelPlan(tables, grid.n - blocks * (self.cell.area - 1), "mean")
        with mark("scoring"):
            score = laplacian_l1(x, grid)
        return block_merging(score, grid, self.cell, blocks, self.aggregate)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return laplacian_l1(x, site.grid(context.latent))

    def _blocks(self, grid: Grid, site: Site) -> int:
        cells = cell_count(grid, self.cell)
        if self.tau is not None:
            blocks = int(self.tau * cells)
        else:
            blocks = min(self.removed(grid, site) // (self.cell.area - 1), cells)
        if blocks < 1:
            raise InputError(
                f"ABM with ratio={self.ratio}, tau={self.tau} merges none of the {cells} cells at {site.name}; raise "
                "it or select other sites"
            )
        return blocks
