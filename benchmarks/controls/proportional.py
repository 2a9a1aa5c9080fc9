"""Does merging hurt because a merged token counts once in attention? ToMe with proportional attention.

    PYTHONPATH=benchmarks bigain predict --config demo_unet_none.yaml --data.images 512 \\
        --compressor controls.proportional.ProportionalToMe --compressor.ratio 0.5 --compressor.where.max_stride 4

No paper compresses diffusion models this way; it is a control that `benchmarks/embedded.py` compares with ToMe.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bigain.backbones.sites import Layout, Site
from bigain.compressors import ToMe
from bigain.compressors.base import ContextGetter, own
from bigain.tokens.matching import MergePlan


class ProportionalToMe(ToMe):
    """ToMe with proportional attention: the logits of a merged key gain the logarithm of how many tokens it stands for.

    Source: Bolya et al., Token Merging: Your ViT But Faster (ICLR 2023), Eq. 1. Self-attention only.
    """

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        super().hook_site(layout, site, context, undo)

        def weigh(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            plan: MergePlan = context().cache[(id(self), site.index)]
            x = args[0] if args else kwargs["hidden_states"]
            return args, {**kwargs, "attention_mask": sizes(plan).log().to(x.dtype)[:, None]}

        attention = site.block.attn1
        assert isinstance(attention, nn.Module)
        own(attention.register_forward_pre_hook(weigh, with_kwargs=True), undo)


def sizes(plan: MergePlan) -> Tensor:
    """Return how many tokens each merged row stands for. `(b, k)`, float32."""
    ones = torch.ones(plan.restore.shape, device=plan.restore.device)
    return torch.zeros(plan.kept.shape, device=ones.device, dtype=ones.dtype).scatter_add(1, plan.restore, ones)
