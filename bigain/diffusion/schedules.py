"""Schedules map timesteps (b,) to values (b,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError


class Schedule(ABC):
    """A value per timestep."""

    @abstractmethod
    def __call__(self, timesteps: Tensor) -> Tensor:
        """Evaluate at timestep values in [0, 999]. `(b,)` -> `(b,)`, float32."""


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear in the timestep value: `start` at t = 999 (where sampling starts), `end` at t = 0."""

    start: float
    end: float

    def __call__(self, timesteps: Tensor) -> Tensor:
        fraction = timesteps.float() / 999
        return self.start * fraction + self.end * (1 - fraction)


@dataclass(frozen=True)
class Steps(Schedule):
    """Constant between timesteps: the first of `values` where sampling starts, the next below each of `below`.

    `Steps([0.7, 0.5, 0], [600, 200])` is 0.7 at 999 to 600, 0.5 at 599 to 200, and 0 at 199 to 0.
    """

    values: Sequence[float]
    below: Sequence[int]

    def __post_init__(self) -> None:
        falling = [TIMESTEPS, *self.below, 0]
        if len(self.values) != len(self.below) + 1 or falling != sorted(set(falling), reverse=True):
            steps = f"values {list(self.values)} below {list(self.below)}"
            raise InputError(f"steps need falling timesteps within 1..{TIMESTEPS - 1} and one more value, not {steps}")

    def __call__(self, timesteps: Tensor) -> Tensor:
        result = torch.full_like(timesteps, self.values[0], dtype=torch.float32)
        for value, below in zip(self.values[1:], self.below, strict=True):
            result = torch.where(timesteps < below, value, result)
        return result


def by_timestep(setting: float | Schedule) -> tuple[float, ...]:
    """Return the values of a setting at timesteps 0 to 999."""
    if not isinstance(setting, Schedule):
        return (setting,) * TIMESTEPS
    # Rounded float32: 0.7, not 0.699999988.
    return tuple(round(value, 6) for value in setting(torch.arange(TIMESTEPS)).tolist())
