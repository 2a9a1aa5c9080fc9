"""CAM: one plan per stage, reused by the later sites of the stage in the same forward."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors.merging import TokenMerger
from bigain.errors import InputError
from bigain.tokens.matching import MergePlan


class CAM(TokenMerger):
    """Caches the merge plan of the first site of each stage (down, mid, up; all blocks of a DiT are one stage).

    The cache is part of the forward's context.

    Source: BiGain (CVPR 2026), the cached assignment variant of LGTM.
    Cost: the inner method's, once per stage instead of once per site.
    """

    def __init__(self, inner: TokenMerger) -> None:
        """Wrap a merger.

        Args:
            inner: Any merger; its `where`, `modules`, `metric`, `during` and `seed` apply.

        Raises:
            InputError: If it is not a merger.
        """
        if not isinstance(inner, TokenMerger):
            raise InputError(f"CAM caches the plans of a merger, such as LGTM, not of {type(inner).__name__}")
        super().__init__(inner.where, inner.modules, inner.metric, inner.position, inner.during, inner.proportional)
        self.inner = inner
        self.pads = inner.pads
        self.generation_only = inner.generation_only

    def check_module(self, module: Any) -> None:
        self.inner.check_module(module)

    def shared_value(self, timestep: int) -> Hashable:
        return self.inner.shared_value(timestep)

    @property
    def depends_on_class(self) -> bool:
        return self.inner.depends_on_class

    def plan_of(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        # Later sites reuse the plan for all rows.
        return self.plan(x, site, context)

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        return self.plan_of_stage(x, site, context, self.inner.plan_of)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        planned_at, _ = context.cache[(id(self), "stage", site.part, site.stride)]
        # Later sites of a stage reuse the decision.
        return self.inner.token_scores(x, site, context) if planned_at == site.index else None
