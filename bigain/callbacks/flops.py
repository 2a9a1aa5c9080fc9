"""GFLOPs of one evaluation, counted by torch on the installed network."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones.base import Backbone


@torch.no_grad()
def flops_per_evaluation(backbone: Backbone, latent: tuple[int, int, int], condition: torch.Tensor) -> dict[str, int]:
    """FLOPs of one denoiser row as it is hooked now: 2 per multiply-add, matrix products and convolutions only.

    Args:
        backbone: A loaded backbone.
        latent: (channels, height, width) of a latent.
        condition: One row of its conditions. `(1, ...)`.

    Returns:
        FLOPs by torch operation.
    """
    noisy = torch.zeros(1, *latent, device=condition.device)
    timesteps = torch.full((1,), 500, device=condition.device)
    with FlopCounterMode(display=False) as counter:
        backbone.predict_noise(noisy, timesteps, condition)
    return {str(operation): int(flops) for operation, flops in counter.get_flop_counts()["Global"].items()}
