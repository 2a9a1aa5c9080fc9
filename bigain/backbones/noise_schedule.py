"""The noise schedule that a model was trained with, from the settings of its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from bigain.backbones.hub import reason
from bigain.backbones.loading import UNLOADABLE, ModelFiles
from bigain.diffusion.parametrisation import Diffusion, Flow, Parametrisation, Target
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError

_EXPECTED = {
    Diffusion: f"a DDPM noise schedule of {TIMESTEPS} timesteps",
    Flow: f"a scheduler of flow matching with {TIMESTEPS} timesteps",
}


def load_schedule(
    files: ModelFiles, kinds: Sequence[type[Parametrisation]]
) -> tuple[dict[str, Any], DDPMScheduler | FlowMatchEulerDiscreteScheduler]:
    """Read the settings of the sampler that a model was saved with, and the noise schedule that they define.

    Raises:
        InputError: If there are none, or they are those of another kind of diffusion than `kinds`.
    """
    file = "scheduler/scheduler_config.json"
    config = files.json(file)
    name, betas = str(config.get("_class_name")), config.get("beta_schedule") or config.get("trained_betas")
    saved = f"{file} of {files.source} ({name})"
    expected = f"expected {' or '.join(_EXPECTED[kind] for kind in kinds)}"
    steps, spacing = config.get("num_train_timesteps", TIMESTEPS), config.get("timestep_type", "discrete")
    flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    problems = {
        "uses no beta_schedule: a model of flow matching": flow and Flow not in kinds,
        # `from_config` and `save_pretrained` keep the betas of the previous scheduler.
        "has the beta_schedule of another scheduler; delete its settings if the network predicts a velocity, else "
        "restore the model's own file": name.startswith("FlowMatch") and betas,
        # Schedulers of EDM and consistency models have no betas; continuous timesteps are noise levels.
        "uses no beta_schedule: a model of EDM or consistency": not flow and (name.startswith("EDM") or not betas),
        "is not of flow matching": not flow and Diffusion not in kinds,
        f"has timestep_type {spacing!r}": spacing != "discrete",
        # Checked before the schedule of this length is computed.
        f"gives num_train_timesteps {steps!r}": steps != TIMESTEPS,
        "has invert_sigmas: its timesteps count from noise to images": config.get("invert_sigmas"),
    }
    if problem := next((problem for problem, applies in problems.items() if applies), None):
        raise InputError(f"{saved} {problem}; {expected}")
    # DPM-Solver and similar schedulers call the shift `flow_shift`.
    shift = {"shift": config["flow_shift"]} if "flow_shift" in config else {}
    try:
        scheduler: Any = (FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler).from_config(config, **shift)
        # The noise levels of a flow depend on the resolution; any one will do here.
        timesteps = parametrisation_of(scheduler).on_schedule(torch.arange(TIMESTEPS), 1024)
        levels = timesteps / TIMESTEPS if flow else scheduler.betas
    except UNLOADABLE as error:
        message = reason(error, files.source, files.local_files_only)
        raise InputError(f"cannot make the schedule of {file} of {files.source}: {message}") from error
    if not flow and (kind := scheduler.config["prediction_type"]) not in ("epsilon", "v_prediction"):
        raise InputError(f"{files.source} predicts {kind!r}; expected epsilon or v_prediction")
    if len(levels) != TIMESTEPS or not ((levels >= 0) & (levels <= 1)).all() or not levels.any():
        raise InputError(
            f"the {'noise levels' if flow else 'betas'} of {saved} are not {TIMESTEPS} numbers in [0, 1]; {expected}"
        )
    return config, scheduler


def parametrisation_of(scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler) -> Parametrisation:
    """Return the noise levels of a scheduler, and what networks that were trained with it predict."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return Flow("velocity", scheduler.config)
    predicts: Target = "velocity" if scheduler.config["prediction_type"] == "v_prediction" else "epsilon"
    # Not a buffer: a half-precision trainer would round it, with relative errors above 1e-2 at its small end.
    return Diffusion(predicts, scheduler.alphas_cumprod.float())
