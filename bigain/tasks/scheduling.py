"""A diffusers scheduler that samples from a backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin

from bigain.backbones.base import Backbone
from bigain.errors import InputError

# What constructors of schedulers raise at settings that they cannot take.
_UNMAKEABLE = (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError)
_NOISE_SCHEDULE = ("beta_", "trained_betas", "num_train_timesteps", "rescale_betas")


def make_scheduler(backbone: Backbone, kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> Any:
    """A scheduler with the model's noise schedule.

    Args:
        backbone: A loaded backbone.
        kind: Class of the scheduler.
        options: Its settings, where they differ from the class's own.
        steps: Denoising steps.

    Raises:
        InputError: If it cannot sample from this model.
    """
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"{kind.__name__} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    if "prediction_type" not in known:
        raise InputError(
            f"{kind.__name__} has no prediction type, but {backbone.model} predicts {backbone.prediction_type}; "
            "choose another scheduler"
        )
    config = backbone.scheduler_config
    # The noise schedule is the model's; what the folder's own sampler did about spacing or clipping is not.
    settings = {key: config[key] for key in config if key in known and key.startswith(_NOISE_SCHEDULE)}
    # In latent space there is nothing to clip to.
    settings |= {"clip_sample": False} if "clip_sample" in known else {}
    settings |= {"prediction_type": backbone.prediction_type, **options}
    try:
        scheduler: Any = kind(**settings)
        scheduler.set_timesteps(steps)
    except _UNMAKEABLE as error:
        raise InputError(f"{kind.__name__} cannot be made for {backbone.model} with {settings}: {error}") from error
    _refuse_foreign_noise(scheduler, backbone, options)
    return scheduler


def count_steps(kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> int:
    """How many timesteps a scheduler visits; one of second order more than it is asked for.

    Args:
        kind: Class of the scheduler.
        options: Its settings, where they differ from the class's own.
        steps: Denoising steps.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        scheduler: Any = kind(**options)
        scheduler.set_timesteps(steps)
    except _UNMAKEABLE as error:
        raise InputError(f"{kind.__name__} cannot be made with {dict(options)}: {error}") from error
    return len(scheduler.timesteps)


def _refuse_foreign_noise(scheduler: Any, backbone: Backbone, options: Mapping[str, Any]) -> None:
    """Raise an InputError if noise levels are not those of the model, without anybody having asked for that."""
    name = type(scheduler).__name__
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None:
        raise InputError(
            f"{name} has noise levels of its own kind, and {backbone.model} was trained on those of DDPM; choose "
            "another scheduler"
        )
    if any(option.startswith(_NOISE_SCHEDULE) for option in options):
        return
    expected = backbone.alpha_bar(torch.arange(backbone.scheduler_config["num_train_timesteps"]))
    if len(own) != len(expected) or not torch.allclose(torch.as_tensor(own).float(), expected, rtol=1e-3):
        raise InputError(f"{name} changes the noise levels that {backbone.model} was trained on; choose another")
