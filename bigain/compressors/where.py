"""The selection of sites that a compressor acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bigain.backbones.sites import Layout, Part, Site
from bigain.errors import InputError

Preset = Literal["first_12", "released"]

# DiT-XL/2: `first_12` is the paper's text, `released` the ten blocks that produced its numbers.
PRESETS: dict[str, tuple[int, ...]] = {"first_12": tuple(range(12)), "released": (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)}


@dataclass(frozen=True)
class Where:
    """Selects sites; all conditions must hold.

    Attributes:
        max_stride: Largest stride; the paper compresses the highest resolution only. If the network has no site up
            to this stride, as SDXL has none at 1, the network's smallest stride.
        min_stride: Smallest stride.
        part: `down`, `mid` or `up` of a U-Net; None is all.
        blocks: Site indices from 0, or the preset `first_12` or `released`; None is all.
    """

    max_stride: int = 1
    min_stride: int = 1
    part: Part | None = None
    blocks: Sequence[int] | Preset | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_stride <= self.max_stride:
            raise InputError(f"expected 1 <= min_stride <= max_stride, got {self.min_stride} and {self.max_stride}")
        if self.part not in (None, "down", "mid", "up"):
            raise InputError(f"part must be down, mid, up or null, not {self.part!r}")
        if isinstance(self.blocks, str) and self.blocks not in PRESETS:
            raise InputError(f"blocks must be site indices or one of {', '.join(PRESETS)}, not {self.blocks!r}")

    def select(self, layout: Layout) -> tuple[Site, ...]:
        """Return the selected sites in execution order.

        Raises:
            InputError: If an index does not exist, a preset is of another kind of network, or nothing is selected.
        """
        if isinstance(self.blocks, str) and any(site.part for site in layout.sites):
            raise InputError(f"blocks: {self.blocks} is a range of DiT blocks; for {layout.model} give site indices")
        blocks = PRESETS[self.blocks] if isinstance(self.blocks, str) else self.blocks
        unknown = sorted(set(blocks or ()) - {site.index for site in layout.sites})
        if unknown:
            raise InputError(
                f"blocks={self.blocks!r} contains site {unknown[0]}, but {layout.model} has sites 0 to "
                f"{len(layout.sites) - 1}"
            )
        largest = max(self.max_stride, min((site.stride for site in layout.sites), default=1))
        chosen = tuple(
            site
            for site in layout.sites
            if self.min_stride <= site.stride <= largest
            and self.part in (None, site.part)
            and (blocks is None or site.index in blocks)
        )
        if not chosen:
            raise InputError(f"no site of {layout.model} is selected by {self}")
        return chosen
