"""LGTM (BiGain_TM): merge into the flattest token of each cell, so that detail survives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Metric, Site
from bigain.compressors.merging import (
    Module,
    TokenMerger,
    check_mode,
    check_ratio,
    draw_destinations,
    removed_tokens,
)
from bigain.compressors.where import Where
from bigain.errors import InputError, check_choice
from bigain.tokens.destinations import cell_destinations, first_destinations, released_destinations
from bigain.tokens.grid import Grid
from bigain.tokens.matching import MergePlan, Mode, bipartite_matching
from bigain.tokens.scores import laplacian_l1

Score = Callable[[Tensor, Grid], Tensor]
Destination = Literal["cell", "released", "first", "random", "redrawn"]

_DESTINATIONS = ("cell", "released", "first", "random", "redrawn")


class LGTM(TokenMerger):
    """Laplacian-gated token merging: the destination of a cell is its token with the lowest score.

    Source: BiGain (CVPR 2026), Eq. 7 and Algorithm 2.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities at 2x2 cells, and `2 * 9 * n * c` for the
    Laplacian.
    """

    def __init__(
        self,
        *,
        ratio: float,
        destination: Destination = "cell",
        score: Score = laplacian_l1,
        mode: Mode = "mean",
        cell: Sequence[int] = (2, 2),
        where: Where = Where(),  # noqa: B008 - frozen
        modules: Sequence[Module] = ("self_attn",),
        metric: Metric | None = None,
        seed: int = 0,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area].
            destination: `cell`: argmin of the score inside each cell (paper); `released`: the released code's
                scrambled choice; `first`, `random`, `redrawn`: controls without a score, see `ToMe`.
            score: Import path or function `(b, n, c), Grid -> (b, n)`, larger = more detail.
            mode: `mean` averages; `prune` drops the merged tokens.
            cell: Height and width of the cells.
            where: Sites; the default is every stride-1 block.
            modules: Any of self_attn, cross_attn, mlp; the paper's default is self-attention.
            metric: `block_input` or `attn_input`; null is the network's default.
            seed: Of the `random` and `redrawn` destinations.

        Raises:
            InputError: If an argument is out of range.
        """
        super().__init__(where, modules, metric)
        check_choice("destination", destination, _DESTINATIONS)
        self.ratio = ratio
        self.destination = destination
        self.score = score
        self.mode: Mode = check_mode(mode)
        self.cell = check_ratio(ratio, cell)
        self.seed = seed

    @property
    def depends_on_class(self) -> bool:
        return self.destination == "redrawn"

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid = site.grid(context.latent)
        removed = removed_tokens("LGTM", self.ratio, grid, self.cell, site)
        return bipartite_matching(x, self._destinations(x, grid, site, context), removed, self.mode)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        scored = self.destination in ("cell", "released")
        return self.score(x, site.grid(context.latent)) if scored else None

    def _destinations(self, x: Tensor, grid: Grid, site: Site, context: ForwardContext) -> Tensor:
        if self.destination == "cell":
            return cell_destinations(self._scores(x, grid), grid, self.cell)
        if self.destination == "released":
            if grid.w % self.cell.w:
                raise InputError(
                    f"destination released needs a token map width divisible by {self.cell.w}, not {grid.w} "
                    f"({site.name}); use destination cell"
                )
            return released_destinations(self._scores(x, grid), grid, self.cell)
        if self.destination == "first":
            return first_destinations(grid, self.cell, x.device)
        return draw_destinations(context, self.seed, site, self.cell, redrawn=self.destination == "redrawn")

    def _scores(self, x: Tensor, grid: Grid) -> Tensor:
        with mark("scoring"):
            return self.score(x, grid)
