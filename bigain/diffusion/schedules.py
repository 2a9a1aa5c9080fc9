"""Schedules map timesteps (b,) to values (b,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


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
