"""Sampling from noise to latents with any scheduler; every item has its own random stream."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigain.tokens.randomness import mix, random_normal

# Random streams, different from those of classification.
_INITIAL, _STEP, _GENERATOR = 3, 4, 5

# (latents, timestep, step) -> guided network output, all `(b, c, h, w)`.
Denoise = Callable[[Tensor, Tensor, int], Tensor]


def item_keys(image_keys: Tensor, seed: int) -> Tensor:
    """Return the keys of (seed, item). `(b,)` -> `(b,)`, int64."""
    return mix(image_keys, seed, _INITIAL)


def step_keys(keys: Tensor, step: int) -> Tensor:
    """Return the keys of (seed, item, step). `(b,)` -> `(b,)`, int64."""
    return mix(keys, step, _STEP)


def initial_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal latents, a function of the item only. `(b,)` -> `(b, *shape)`, float32."""
    return random_normal(keys, math.prod(shape)).view(-1, *shape)


def sample(
    denoise: Denoise,
    keys: Tensor,
    shape: Sequence[int],
    scheduler: Any,
    steps: int,
    timestep_options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Run a diffusers scheduler from noise to latents, in float32.

    Args:
        denoise: The guided network in the scheduler's parametrisation.
        keys: `item_keys` of the items. `(b,)`, int64.
        shape: (channels, height, width) of a latent.
        scheduler: Any diffusers scheduler; a copy is used, because schedulers have state.
        steps: Denoising steps.
        timestep_options: Further arguments of the scheduler's `set_timesteps`.

    Returns:
        `(b, c, h, w)`, float32.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=keys.device, **(timestep_options or {}))
    options: dict[str, Any] = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        # For schedulers that add noise: one generator per item, so that items do not share a stream.
        seeds = (mix(keys, _GENERATOR) & (2**63 - 1)).tolist()
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    # Schedulers of flow matching scale neither noise nor input.
    x = initial_noise(keys, shape) * getattr(scheduler, "init_noise_sigma", 1)
    scale = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
    for step, timestep in enumerate(scheduler.timesteps):
        output = denoise(scale(x, timestep), timestep, step)
        x = scheduler.step(output, timestep, x, **options)[0].float()
    return x
