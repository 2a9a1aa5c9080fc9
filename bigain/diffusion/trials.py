"""The (timestep, noise) pairs that each image is evaluated on, by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bigain.tokens.randomness import mix, random_integers, random_normal, stable_hash

Budget = Literal["cumulative", "released"]
# Timesteps of every model; trials, grids and schedules are defined on them.
TIMESTEPS = 1000

# Separate random streams of one (seed, image, trial).
_NOISE = 1
_TIMESTEP = 2
_ORDER = 3
_REPEAT = 4


def trial_grid(trials: int) -> list[int]:
    """Return evenly spaced timesteps `T//m//2 + j * (T//m)`: 25, 75, ..., 975 for 20 trials."""
    step = TIMESTEPS // trials
    return [step // 2 + j * step for j in range(trials)]


def stage_trials(budgets: Sequence[int], budget: Budget = "cumulative") -> list[list[int]]:
    """Return the new trials of each stage, as indices into `trial_grid(max(budgets))`.

    A stage with budget n has the candidates `[len//n//2 :: len//n][:n]` of the grid that were not yet evaluated.

    Args:
        budgets: Trials per stage, ascending, e.g. `[5, 20]`.
        budget: `cumulative`: a survivor of stage i has `budgets[i]` trials in total (Table 10 of the paper);
            `released`: every candidate is evaluated.

    Raises:
        ValueError: If the budgets are not ascending positive integers of at most 1000.
    """
    if not budgets or any(a >= b for a, b in pairwise(budgets)) or budgets[0] < 1:
        raise ValueError(f"trials must be ascending positive integers, not {list(budgets)}")
    size = budgets[-1]
    if size > TIMESTEPS:
        raise ValueError(f"there are {TIMESTEPS} timesteps, not {size}")
    done: set[int] = set()
    stages = []
    for n in budgets:
        step = size // n
        candidates = [j for j in range(step // 2, size, step)][:n]
        candidates = [j for j in candidates if j not in done]
        if budget == "cumulative":
            count = min(n - len(done), len(candidates))
            candidates = [candidates[int((j + 0.5) * len(candidates) / count)] for j in range(count)]
        done.update(candidates)
        stages.append(candidates)
    return stages


def trial_keys(image_keys: Tensor, trials: Tensor, seed: int) -> Tensor:
    """Return the keys of (seed, image, trial). `(b,)`, `(b,)` -> `(b,)`, int64."""
    return mix(image_keys, seed, trials)


def keys_of_trials(image_ids: Sequence[str], trials: int, seed: int, device: torch.device | None = None) -> Tensor:
    """Return the keys of the first trials of images by id. `(b, t)`, int64."""
    image_keys = torch.tensor([stable_hash(image_id) for image_id in image_ids], device=device)
    return trial_keys(image_keys[:, None], torch.arange(trials, device=device)[None], seed)


def with_repeats(keys: Tensor, noises: int) -> Tensor:
    """Append the keys of further noises at the same timesteps: trial `j * t + i` is noise j of trial i.

    `(b, t)` -> `(b, noises * t)`, int64.
    """
    repeats = torch.arange(1, noises, device=keys.device)[:, None]
    return torch.cat([keys, mix(keys[:, None], _REPEAT, repeats).flatten(1)], 1)


def trial_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw the noise of each trial, the same for all classes. `(b,)` -> `(b, *shape)`, float32 standard normal."""
    return random_normal(mix(keys, _NOISE), math.prod(shape)).view(-1, *shape)


def uniform_timesteps(keys: Tensor) -> Tensor:
    """Draw a uniform timestep in 0..999 per trial key (Algorithm 1). `(b,)` -> `(b,)`, int64."""
    return random_integers(mix(keys, _TIMESTEP), 1, TIMESTEPS).squeeze(-1)


def grid_timesteps(trials: Tensor, size: int) -> Tensor:
    """Return the timestep of each trial index on the even grid of `size` trials. `(b,)` -> `(b,)`, int64."""
    return torch.tensor(trial_grid(size), device=trials.device)[trials]


def random_order(keys: Tensor) -> Tensor:
    """Return the trials of each image in a random order, a function of their keys. `(b, t)` -> `(b, t)`, int64."""
    return mix(keys, _ORDER).argsort(dim=1)
