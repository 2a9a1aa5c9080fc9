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

from bigain.backbones.base import Backbone
from bigain.diffusion.sampling import sample
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError

_NOISE_SCHEDULE = ("beta_", "trained_betas", "num_train_timesteps", "rescale_betas")


def make_scheduler(backbone: Backbone, kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> Any:
    """Create a scheduler with the settings in the model's folder, as `from_config` does, and `options` after them.

    Raises:
        InputError: If it cannot sample from this model, which is loaded.
    """
    known = inspect.signature(kind.__init__).parameters
    if "prediction_type" not in known:
        raise InputError(
            f"{kind.__name__} has no prediction type, but {backbone.model} predicts {backbone.prediction_type}; "
            "choose another scheduler"
        )
    # In latent space there is nothing to clip to, but the default of several classes is to clip.
    settings: dict[str, Any] = {"clip_sample": False} if "clip_sample" in known else {}
    settings |= {**backbone.scheduler_config, "prediction_type": backbone.prediction_type}
    scheduler = _created(kind, settings, options, steps)
    _check_noise_levels(scheduler, backbone, options)
    with _refusals(kind, options, steps):
        # Some settings fail at one of the steps only.
        sample(lambda x, timestep, step: x, torch.zeros(1, dtype=torch.int64), (1, 1, 1), scheduler, steps)
    return scheduler


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Return class and settings of a scheduler as data: the folder's, the options, and for the rest the defaults."""
    known = inspect.signature(type(scheduler).__init__).parameters
    settings = {name: value for name, value in json.loads(scheduler.to_json_string()).items() if name in known}
    infinite = {name: str(value) for name, value in settings.items() if value in (math.inf, -math.inf)}
    return {"class": type(scheduler).__name__, **settings, **infinite}


def count_steps(kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> int:
    """Return how many timesteps a scheduler visits; a second-order one visits more than `steps`.

    Raises:
        InputError: If it cannot be created with these options.
    """
    return len(_created(kind, {}, options, steps).timesteps)


def _created(kind: type[SchedulerMixin], folder: Mapping[str, Any], options: Mapping[str, Any], steps: int) -> Any:
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    if unknown := sorted(set(options) - known):
        raise InputError(f"{kind.__name__} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    if options.get("num_train_timesteps", TIMESTEPS) != TIMESTEPS:
        raise InputError(f"num_train_timesteps must be {TIMESTEPS}, not {options['num_train_timesteps']}")
    with _refusals(kind, options, steps):
        scheduler: Any = kind.from_config(dict(folder), **options)
        scheduler.set_timesteps(steps)
        return scheduler


@contextmanager
def _refusals(kind: type[SchedulerMixin], options: Mapping[str, Any], steps: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise InputError(f"cannot use {kind.__name__} with {steps} steps and {dict(options)}: {error}") from error


def _check_noise_levels(scheduler: Any, backbone: Backbone, options: Mapping[str, Any]) -> None:
    """Raise an InputError if the noise levels are not those of the model and no option asks for others."""
    name = type(scheduler).__name__
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None:
        raise InputError(
            f"{name} defines its own noise levels, and {backbone.model} was trained on those of DDPM; choose another "
            "scheduler"
        )
    if any(option.startswith(_NOISE_SCHEDULE) for option in options):
        return
    expected = backbone.alpha_bar(torch.arange(TIMESTEPS))
    if len(own) != len(expected) or not torch.allclose(torch.as_tensor(own).float(), expected, rtol=1e-3):
        raise InputError(f"{name} changes the noise levels that {backbone.model} was trained on; choose another")
