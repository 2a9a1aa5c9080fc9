"""ToMe for Stable Diffusion: merge into a random token of each cell."""

from __future__ import annotations

from typing import Any, Literal, get_args

from bigain.compressors.merging import BipartiteMerger
from bigain.diffusion.schedules import Schedule
from bigain.errors import check_choice

Destination = Literal["random", "first", "redrawn"]


class ToMe(BipartiteMerger):
    """Token merging with a random destination per cell.

    Source: Bolya and Hoffman, Token Merging for Fast Stable Diffusion (CVPRW 2023), and its release tomesd.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities, at 2x2 cells.
    """

    def __init__(self, *, ratio: float | Schedule, destination: Destination = "random", **kwargs: Any) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area].
            destination: `random`: a pure function of (seed, row key, site), shared by all classes of one (image,
                trial); `redrawn`: the class joins the key, as upstream redraws its table at every call; `first`:
                top-left, upstream's `use_rand=False`.
            kwargs: See the base classes; upstream's `sy, sx` is `cell`, its `max_downsample` is `where.max_stride`.
        """
        check_choice("destination", destination, get_args(Destination))
        super().__init__(ratio=ratio, destination=destination, **kwargs)
