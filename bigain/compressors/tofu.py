"""ToFu: drop merged tokens in early blocks, average them with their norm kept in later ones."""

from __future__ import annotations

from typing import Any, get_args

from bigain.backbones.sites import Site
from bigain.compressors.merging import BipartiteMerger
from bigain.compressors.tome import Destination
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError, check_choice
from bigain.tokens.matching import Mode


class ToFu(BipartiteMerger):
    """Token fusion: the matching of ToMe, `prune` in the first blocks and `mlerp` in the others.

    Source: Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token Merging (WACV 2024). Early blocks
    respond to averages of their inputs less linearly, so merged tokens are dropped there. MLERP is the direction of the
    mean with the largest norm of the merged tokens; abstract and introduction were at hand, not its formula. Where
    pruning ends is an argument here; the paper measures how linear each block is. Tokens are restored behind each
    module, as ToMe does on diffusion models.
    Inside CAM, a stage merges as its first site does.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities, at 2x2 cells.
    """

    def __init__(
        self,
        *,
        ratio: float | Schedule,
        prune_below: int = 2,
        destination: Destination = "random",
        mode: Mode = "mlerp",
        **kwargs: Any,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area].
            prune_below: Sites with an index below it are pruned, about half of those that are compressed. The default
                is for SD 2.0: its blocks on the way down.
            destination: As for `ToMe`.
            mode: Of the other sites; the paper also compares with `mean`.
            kwargs: See the base classes.
        """
        if prune_below < 0:
            raise InputError(f"prune_below must be at least 0, not {prune_below}")
        check_choice("destination", destination, get_args(Destination))
        super().__init__(ratio=ratio, destination=destination, mode=mode, **kwargs)
        self.prune_below = prune_below

    def mode_at(self, site: Site) -> Mode:
        return "prune" if site.index < self.prune_below else self.mode
