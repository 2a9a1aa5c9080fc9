"""LGTM (BiGain_TM): merge into the flattest token of each cell, so that detail survives."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.merging import BipartiteMerger
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError, check_choice
from bigain.tokens.destinations import cell_destinations, released_destinations
from bigain.tokens.dispatch import needs_torch
from bigain.tokens.grid import Grid, cell_count
from bigain.tokens.scores import Score, laplacian_l1

Destination = Literal["cell", "released", "first", "random", "redrawn"]


class LGTM(BipartiteMerger):
    """Laplacian-gated token merging: the destination of a cell is its token with the lowest score.

    Source: BiGain (CVPR 2026), Eq. 7 and Algorithm 2.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities at 2x2 cells, and `2 * 9 * n * c` for the
    Laplacian.
    """

    def __init__(
        self,
        *,
        ratio: float | Schedule,
        destination: Destination = "cell",
        score: Score = laplacian_l1,
        source_quantile: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area].
            destination: `cell`: argmin of the score inside each cell (paper); `released`: the released code's
                scrambled choice; `first`, `random`, `redrawn`: controls without a score, see `ToMe`.
            score: Import path or function `(b, n, c), Grid -> (b, n)`, larger = more detail.
            source_quantile: Let only this fraction of the sources merge, in (0, 1], those of lowest score ("restrict
                merging to low-frequency tokens only", Section 4.5). Null, as Algorithm 2: let all.
            kwargs: See the base classes.
        """
        check_choice("destination", destination, get_args(Destination))
        super().__init__(ratio=ratio, destination=destination, **kwargs)
        if source_quantile is not None and not 0 < source_quantile <= 1:
            raise InputError(f"source_quantile must be above 0 and at most 1, or null, not {source_quantile}")
        self.score = score
        self.source_quantile = source_quantile

    def destinations(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        if self.destination not in ("cell", "released"):
            return super().destinations(x, site, context)
        self._check_width(grid, site)
        choose = cell_destinations if self.destination == "cell" else released_destinations
        return choose(self._score(x, site, context), grid, self.cell)

    def gate(self, x: Tensor, site: Site, context: ForwardContext) -> tuple[Tensor, int] | None:
        if self.source_quantile is None:
            return None
        grid = site.grid(context.latent)
        sources = grid.n - cell_count(grid, self.cell)
        limit, removed = int(self.source_quantile * sources), self.removed(grid, site, context)
        if limit < removed:
            raise InputError(
                f"LGTM with ratio {self.ratio} merges {removed} tokens at {site.name}, but source_quantile "
                f"{self.source_quantile} allows only {limit} of {sources} sources; lower ratio or raise source_quantile"
            )
        return self._score(x, site, context), limit

    def _score(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        """Score the tokens, once for gate and destinations."""
        if (key := (id(self), "score", site.index)) not in context.cache:
            with mark("scoring"):
                context.cache[key] = self.score(x, site.grid(context.latent))
        return context.cache[key]

    def kernel_rule(self, x: Tensor, site: Site, context: ForwardContext) -> tuple[str, Tensor | None]:
        if self.destination not in ("cell", "released"):
            return super().kernel_rule(x, site, context)
        if self.score is not laplacian_l1:
            needs_torch(f"the score {getattr(self.score, '__name__', self.score)}")
            return "given", self.destinations(x, site, context)
        self._check_width(site.grid(context.latent), site)
        return ("flattest" if self.destination == "cell" else "released"), None

    def _check_width(self, grid: Grid, site: Site) -> None:
        if self.destination == "released" and grid.w % self.cell.w:
            raise InputError(
                f"destination released needs a token map width divisible by {self.cell.w}, not {grid.w} "
                f"({site.name}); use destination cell"
            )

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        uses_scores = self.destination in ("cell", "released") or self.source_quantile is not None
        return self.score(x, site.grid(context.latent)) if uses_scores else None
