"""ToMe for Stable Diffusion: merge into a random token of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from bigain.backbones.forward import ForwardContext
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
from bigain.errors import InputError
from bigain.tokens.destinations import first_destinations
from bigain.tokens.matching import MergePlan, Mode, bipartite_matching


class ToMe(TokenMerger):
    """Token merging with a random destination per cell.

    Source: Bolya and Hoffman, Token Merging for Fast Stable Diffusion (CVPRW 2023), and its release tomesd.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities, at 2x2 cells.
    """

    def __init__(
        self,
        *,
        ratio: float,
        destination: Literal["random", "first", "redrawn"] = "random",
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
            destination: `random`: a pure function of (seed, row key, site), shared by all classes of one (image,
                trial); `redrawn`: the class joins the key, as upstream redraws its table at every call; `first`:
                top-left, upstream's `use_rand=False`.
            mode: `mean` averages; `prune` drops the merged tokens.
            cell: Height and width of the cells; upstream's `sy, sx`.
            where: Sites; the default is every stride-1 block, as upstream's `max_downsample=1`.
            modules: Any of self_attn, cross_attn, mlp; the paper's default is self-attention.
            metric: `block_input` or `attn_input`; null is the network's default.
            seed: Of the random destinations.

        Raises:
            InputError: If an argument is out of range.
        """
        super().__init__(where, modules, metric)
        if destination not in ("random", "first", "redrawn"):
            raise InputError(f"destination must be random, first or redrawn, not {destination!r}")
        self.ratio = ratio
        self.destination = destination
        self.mode: Mode = check_mode(mode)
        self.cell = check_ratio(ratio, cell)
        self.seed = seed

    @property
    def depends_on_class(self) -> bool:
        return self.destination == "redrawn"

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid = site.grid(context.latent)
        removed = removed_tokens("ToMe", self.ratio, grid, self.cell, site)
        if self.destination == "first":
            destination = first_destinations(grid, self.cell, x.device)
        else:
            redrawn = self.destination == "redrawn"
            destination = draw_destinations(context, self.seed, site, self.cell, redrawn=redrawn)
        return bipartite_matching(x, destination, removed, self.mode)
