"""CoReDiT: skip the tokens that cohere with their surroundings, restore them from retained neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.merging import CellMerger
from bigain.diffusion.schedules import Schedule, by_timestep
from bigain.errors import InputError
from bigain.tokens.coherence import coherence, coherence_plan, max_skipped
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.matching import MergePlan


class CoReDiT(CellMerger):
    """Coherence-guided token pruning and reconstruction.

    A token's coherence is its mean cosine to the tokens of its window. The most coherent tokens are skipped, and
    restored as the mean of the retained tokens of their cell, weighted by coherence. Tokens on every
    `min(cell)`-th diagonal, shifted by one from block to block, always stay, so that each cell has one.

    Source: Li et al., CoReDiT: Spatial Coherence-Guided Token Pruning and Reconstruction for Efficient Diffusion
    Transformers (CVPR EDGE workshop 2026, arXiv 2605.14191), by the formulas that public summaries of it print. There,
    fine-tuning finds a ratio for each block, and the last steps skip a quarter as many tokens; without training, all
    blocks and steps have the same ratio. Ours: cells divide the whole map rather than each window, diagonals are
    min(cell) apart (there: at most that), the last token of the map always stays, weights are at least 1e-6.
    Cost: no products; about `4 * n * c` sums for the coherence, and `2 * area * n * c` for each restoration.
    """

    def __init__(
        self,
        *,
        ratio: float | Schedule = 0.4,
        cell: Sequence[int] = (3, 3),
        windows: Sequence[int] = (16, 9),
        **kwargs: Any,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens skipped, in (0, 1 - 1/min(cell)].
            cell: Height and width of the neighbourhoods for restoring, each at least 2.
            windows: Sides of the windows for coherence; blocks use them in turn, so that borders do not meet.
            kwargs: See the base classes.
        """
        super().__init__(ratio=ratio, cell=cell, **kwargs)
        if min(self.cell) < 2 or max(by_timestep(ratio)) > self.largest_ratio:
            raise InputError(
                f"ratio must be at most 1 - 1/min(cell), as every min(cell)-th token stays: cell {list(cell)} allows "
                f"{self.largest_ratio:.3g}, not {ratio}"
            )
        if not windows or min(windows) < 2:
            raise InputError(f"windows must be sides of at least 2 tokens, not {list(windows)}")
        self.windows = tuple(windows)

    @property
    def largest_ratio(self) -> float:
        return 1 - 1 / min(self.cell)

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        skipped = min(self.removed(grid, site, context), max_skipped(grid, self.cell, site.index))
        kernels_serve(x, "CoReDiT")
        with mark("scoring"):
            score = self._coherence(x, site, context)
        return coherence_plan(score, grid, self.cell, skipped, site.index)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return -self._coherence(x, site, context)

    def _coherence(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return coherence(x, site.grid(context.latent), self.windows[site.index % len(self.windows)])
