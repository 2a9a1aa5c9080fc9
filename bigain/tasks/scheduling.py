"""Create a diffusers scheduler that samples from a backbone."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.diffusion.parametrisation import Diffusion
from bigain.diffusion.sampling import sample
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError

_NOISE_SCHEDULE = ("beta_", "trained_betas", "num_train_timesteps", "rescale_betas")


def make_scheduler(
    backbone: Backbone,
    kind: type[SchedulerMixin],
    options: Mapping[str, Any],
    steps: int,
    latents: tuple[int, int, int],
) -> tuple[Any, dict[str, Any]]:
    """Create a scheduler with the settings in the model's folder, as `from_config` does, and `options` after them.

    Returns it with the further arguments of its `set_timesteps` for latents of this shape, (channels, height, width).

    Raises:
        InputError: If it cannot sample from this model, which is loaded.
    """
    parameters, prediction_type = inspect.signature(kind.__init__).parameters, backbone.parametrisation.prediction_type
    flow = prediction_type == "flow"
    not_for_flow = (
        f"{kind.__name__} does not sample from models of flow matching, such as {backbone.model}; use "
        "FlowMatchEulerDiscreteScheduler, or one with use_flow_sigmas, such as DPMSolverMultistepScheduler"
    )
    if flow and parameters.keys().isdisjoint(("shift", "use_flow_sigmas")):
        raise InputError(not_for_flow)
    if not flow and "prediction_type" not in parameters:
        raise InputError(
            f"{kind.__name__} has no prediction type, but {backbone.model} predicts {prediction_type}; choose another"
        )
    # In latent space there is nothing to clip to, but the default of several classes is to clip.
    settings: dict[str, Any] = {"clip_sample": False} if "clip_sample" in parameters else {}
    model_settings: dict[str, Any] = {"prediction_type": "flow_prediction" if flow else prediction_type}
    if flow:
        # Schedulers call the shift by either name.
        shift = backbone.training_schedule.config["shift"]
        model_settings |= {"shift": shift, "flow_shift": shift, "use_flow_sigmas": True}
    settings |= {**backbone.scheduler_config, **{k: v for k, v in model_settings.items() if k in parameters}}
    if unknown := sorted(options.keys() - parameters):
        known = sorted(parameters.keys() - {"self"})
        raise InputError(f"{kind.__name__} has no option {unknown[0]!r}; it has {', '.join(known)}")
    if options.get("num_train_timesteps", TIMESTEPS) != TIMESTEPS:
        raise InputError(f"num_train_timesteps must be {TIMESTEPS}, not {options['num_train_timesteps']}")
    with _input_errors(kind, options, steps):
        scheduler: Any = kind.from_config(settings, **options)
        timestep_options = backbone.timestep_options(scheduler, steps, latents)
        if "mu" in timestep_options.keys() - inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError("it cannot shift noise levels by the resolution, as this model needs; choose another")
        scheduler.set_timesteps(steps, **timestep_options)
    if not flow:
        _check_noise_levels(scheduler, backbone, options)

    def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
        # For a flow, the exact velocity if the image is all ones.
        return (x - 1) * TIMESTEPS / timestep.clamp_min(1) if flow else x

    with _input_errors(kind, options, steps):
        # Some settings fail only at one of the steps.
        key = torch.zeros(1, dtype=torch.int64)
        sampled = sample(denoise, key, (1, 1, 1), scheduler, steps, timestep_options)
    if flow and not torch.allclose(sampled, torch.ones(1), atol=0.02):
        raise InputError(not_for_flow)
    return scheduler, timestep_options


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Return class and settings of a scheduler as data: the folder's, the options, and for the rest the defaults."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    settings = {name: value for name, value in json.loads(scheduler.to_json_string()).items() if name in parameters}
    infinite = {name: str(value) for name, value in settings.items() if value in (math.inf, -math.inf)}
    return {"class": type(scheduler).__name__, **settings, **infinite}


@contextmanager
def _input_errors(kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise InputError(f"cannot use {kind.__name__} with {steps} steps and {dict(options)}: {error}") from error


def _check_noise_levels(scheduler: Any, backbone: Backbone, options: Mapping[str, Any]) -> None:
    """Raise an InputError if the noise levels are not those of the model and no option asks for others."""
    name, alpha_bars = type(scheduler).__name__, getattr(scheduler, "alphas_cumprod", None)
    if scheduler.config.get("use_flow_sigmas"):
        raise InputError(f"use_flow_sigmas is for models of flow matching; {backbone.model} is none: leave it out")
    if alpha_bars is None:
        raise InputError(
            f"{name} defines its own noise levels, not those of {backbone.model}; choose another scheduler"
        )
    assert isinstance(backbone.parametrisation, Diffusion)
    expected = backbone.parametrisation.alpha_bar(torch.arange(TIMESTEPS))
    same = len(alpha_bars) == len(expected) and torch.allclose(torch.as_tensor(alpha_bars).float(), expected, rtol=1e-3)
    if not same and not any(option.startswith(_NOISE_SCHEDULE) for option in options):
        raise InputError(f"{name} changes the noise levels that {backbone.model} was trained on; choose another")
