"""What a compressor shows to the objects that watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.tokens.matching import MergePlan

if TYPE_CHECKING:
    from bigain.compressors.base import Compressor


@dataclass(frozen=True)
class Decision:
    """A compressor's decision at one site in one forward, before any token is merged or dropped.

    Attributes:
        compressor: The compressor that decides.
        site: The site.
        tokens: Tokens that the decision is based on. `(b, n, c)`.
        plan: The plan of a merger; None if keys and values are downsampled.
        context: The forward, with timesteps, keys and classes of the rows.
    """

    compressor: Compressor
    site: Site
    tokens: Tensor
    plan: MergePlan | None
    context: ForwardContext


@dataclass(frozen=True)
class Observation:
    """The image tokens that a compressed module takes, before and after compression.

    Attributes:
        site: The site.
        module: `self_attn`, `cross_attn` or `mlp`; of two self-attentions of a block, the first.
        before: The uncompressed tokens. `(b, n, c)`.
        restored: Computes the compressed tokens at full length, `(b, n, c)`: merged and unmerged, or for keys the
            nearest key of each token. Returns None if the compressor does not know which key is nearest.
        context: The forward, with the timesteps of the rows.
    """

    site: Site
    module: str
    before: Tensor
    restored: Callable[[], Tensor | None]
    context: ForwardContext


class Onlooker:
    """Base class of objects that watch a compressor; append one to `Compressor.onlookers`."""

    def decided(self, decision: Decision) -> None:
        """Called once per site and forward."""

    def compressed(self, observation: Observation) -> None:
        """Called for every compressed module of every forward."""
