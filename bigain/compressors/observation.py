"""What a compressor decides and does at a site, shown to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.tokens.matching import MergePlan


@dataclass(frozen=True)
class Observation:
    """The tokens that enter a compressed module, before and after.

    Attributes:
        site: Where.
        module: `self_attn`, `cross_attn` or `mlp`.
        before: Tokens as the module would have had them. `(b, n, c)`.
        restored: What is left of them, back at full length: merged and unmerged, or as keys, each place reading the
            key nearest to it. `(b, n, c)`; None if the compressor cannot tell which key that is.
        context: The forward, with the timesteps of the rows.
    """

    site: Site
    module: str
    before: Tensor
    restored: Tensor | None
    context: ForwardContext


Observer = Callable[[Observation], None]


@dataclass(frozen=True)
class Decision:
    """What a compressor decides at a site in one forward, and on which tokens, before anything is shortened.

    Attributes:
        site: Where.
        tokens: What it decides on. `(b, n, c)`.
        plan: Of a merger; None if keys and values are downsampled.
        context: The forward, with timesteps, keys and classes of the rows.
    """

    site: Site
    tokens: Tensor
    plan: MergePlan | None
    context: ForwardContext


Witness = Callable[[Decision], None]
