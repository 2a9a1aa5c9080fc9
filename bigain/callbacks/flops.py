"""GFLOPs of one evaluation, counted by torch on the installed network."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones.base import Backbone


@torch.no_grad()
def flops_per_evaluation(backbone: Backbone, condition: torch.Tensor) -> int:
    """FLOPs of one denoiser row as it is hooked now: 2 per multiply-add, matrix products and convolutions only.

    Args:
        backbone: A loaded backbone.
        condition: One row of its conditions. `(1, ...)`.
    """
    noisy = torch.zeros(1, *backbone.latent_shape, device=condition.device)
    timesteps = torch.full((1,), 500, device=condition.device)
    with FlopCounterMode(display=False) as counter:
        backbone.predict_noise(noisy, timesteps, condition)
    return int(counter.get_total_flops())
