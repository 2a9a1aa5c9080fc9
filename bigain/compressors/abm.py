"""ABM: replace the flattest cells by their mean, with no matching."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.merging import CellMerger
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError, check_choice
from bigain.tokens.block_merging import Aggregate, block_merging, low_block_merging
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Grid, cell_count
from bigain.tokens.matching import MergePlan
from bigain.tokens.scores import Score, laplacian_l1

QuantileOf = Literal["cells", "tokens"]


class ABM(CellMerger):
    """Adaptive block merging on a score of tokens.

    Source: BiGain (CVPR 2026), Algorithm 3. `ratio`, and `tau` as a quantile of cells, are ours: the same number of
    cells in every row.
    Cost: `2 * 9 * n * c` FLOPs per site for the Laplacian; the release scores twice.
    """

    def __init__(
        self,
        *,
        ratio: float | Schedule | None = None,
        tau: float | None = None,
        quantile_of: QuantileOf = "cells",
        score: Score = laplacian_l1,
        aggregate: Aggregate = "max",
        **kwargs: Any,
    ) -> None:
        """Set the method up; give exactly one of `ratio` and `tau`.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area]; rounded down to whole cells.
            tau: Quantile in (0, 1], of cells or tokens: see `quantile_of`.
            quantile_of: `cells` (ours): the `int(tau * cells)` complete cells of lowest score are merged. `tokens` (the
                paper's): a cell is merged if all its tokens are among the `int(tau * n)` of lowest score. These are
                mostly fewer, and their number depends on the image, so sequences keep their length, padded and masked.
                This shows the rule's effect on results and saves nothing.
            score: Import path or function `(b, n, c), Grid -> (b, n)`, larger = more detail.
            aggregate: How token scores become a cell score; `max` is the paper's formula.
            kwargs: See the base classes.
        """
        if (ratio is None) == (tau is None):
            raise InputError(
                f"ABM takes exactly one of ratio and tau, not ratio={ratio} and tau={tau}; set one of them to null"
            )
        if tau is not None and not 0 < tau <= 1:
            raise InputError(f"tau must be above 0 and at most 1, not {tau}")
        check_choice("quantile_of", quantile_of, get_args(QuantileOf))
        check_choice("aggregate", aggregate, get_args(Aggregate))
        if quantile_of == "tokens" and (tau is None or aggregate != "max"):
            raise InputError(f"quantile_of tokens needs tau and aggregate max, not tau={tau}, aggregate={aggregate!r}")
        super().__init__(ratio=ratio, **kwargs)
        self.tau = tau
        self.quantile_of: QuantileOf = quantile_of
        self.pads = quantile_of == "tokens"
        self.score = score
        self.aggregate: Aggregate = aggregate

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        blocks = self._block_count(grid, site, context)
        has_kernel = self.score is laplacian_l1 and self.aggregate in ("max", "sum", "mean") and not self.pads
        if kernels_serve(x, "" if has_kernel else "other scores, aggregates and quantiles of ABM"):
            from bigain.tokens.kernels import plans

            tables = plans.blocks(x, grid, self.cell, blocks, self.aggregate)
            return plans.KernelPlan(tables, grid.n - blocks * (self.cell.area - 1), mode="mean")
        with mark("scoring"):
            score = self.score(x, grid)
        if self.pads:
            assert self.tau is not None
            return low_block_merging(score, grid, self.cell, int(self.tau * grid.n))
        return block_merging(score, grid, self.cell, blocks, self.aggregate)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return self.score(x, site.grid(context.latent))

    def _block_count(self, grid: Grid, site: Site, context: ForwardContext) -> int:
        cells = cell_count(grid, self.cell)
        if self.tau is not None:
            blocks = int(self.tau * cells)
        else:
            blocks = min(self.removed(grid, site, context) // (self.cell.area - 1), cells)
        if blocks < 1:
            raise InputError(
                f"ABM with ratio={self.ratio}, tau={self.tau} merges none of the {cells} cells at {site.name}; raise "
                "it or select other sites"
            )
        return blocks
