"""What a model was trained on: its noise levels, where trials lie on them, and what its network predicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bigain.diffusion.trials import TIMESTEPS

Target = Literal["epsilon", "velocity", "x0"]


@dataclass
class Parametrisation(ABC):
    """Noisy latents `a x0 + b eps`, and a network that predicts the noise or a velocity `p x0 + q eps`.

    Latents are `(n, c, h, w)`, timesteps those that the network sees, `(n,)`; results are float32.

    Attributes:
        default_target: The default target of errors.
        predicts: What the network predicts.
    """

    default_target: ClassVar[Target]
    predicts: Target

    @property
    @abstractmethod
    def prediction_type(self) -> str:
        """What the network predicts: `epsilon`, `v_prediction` or `flow`."""

    @abstractmethod
    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return `a` and `b`. `(n,)` -> `(n,)` twice."""

    @abstractmethod
    def _velocity(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and q of the velocity, for which `a q - b p` is 1."""

    def on_schedule(self, timesteps: Tensor, tokens: int) -> Tensor:
        """Map timesteps in 0..999 to those of the model's schedule, for latents with this number of tokens. `(n,)`."""
        return timesteps

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the ratio of signal to noise, `(a / b)^2`. `(n,)` -> `(n,)`."""
        a, b = self.scales(timesteps)
        return (a / b).square()

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return `a x0 + b eps`."""
        a, b = self._columns(x, timesteps)
        return a * x.float() + b * noise.float()

    def target(self, target: Target, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the true value of what `convert` estimates."""
        if target == "epsilon":
            return noise.float()
        if target == "x0":
            return x.float()
        p, q = self._velocity(*self._columns(x, timesteps))
        return p * x.float() + q * noise.float()

    def convert(self, output: Tensor, noisy: Tensor, timesteps: Tensor, target: Target) -> Tensor:
        """Return the estimate of a target that a network's output implies."""
        output, noisy = output.float(), noisy.float()
        if target == self.predicts:
            return output
        a, b = self._columns(noisy, timesteps)
        p, q = self._velocity(a, b)
        if self.predicts == "velocity":
            return a * output - p * noisy if target == "epsilon" else q * noisy - b * output
        x0 = (noisy - b * output) / a
        return x0 if target == "x0" else p * x0 + q * output

    def _columns(self, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """`scales`, shaped to broadcast over `x`."""
        a, b = self.scales(timesteps)
        shape = (-1, *[1] * (x.ndim - 1))
        return a.float().view(shape), b.float().view(shape)


@dataclass
class Diffusion(Parametrisation):
    """`sqrt(abar) x0 + sqrt(1 - abar) eps` (Ho et al., 2020); velocity `a eps - b x0` (Salimans and Ho, 2022).

    Attributes:
        levels: abar at every timestep. `(1000,)`, float32.
    """

    default_target = "epsilon"
    levels: Tensor

    @property
    def prediction_type(self) -> str:
        return "epsilon" if self.predicts == "epsilon" else "v_prediction"

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """Cumulative signal variance at integer timesteps. `(n,)` -> `(n,)`, float32."""
        if self.levels.device != timesteps.device:
            self.levels = self.levels.to(timesteps.device)
        return self.levels[timesteps]

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar(timesteps)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def _velocity(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return -b, a


@dataclass
class Flow(Parametrisation):
    """Rectified flow: `(1 - s) x0 + s eps`, velocity `eps - x0`, timestep `1000 s` (Liu et al., 2023).

    At high noise, the error of the implied noise, `(1 - s)^2 |v - v_hat|^2`, vanishes, so velocity is the default.

    Attributes:
        config: Settings of a `FlowMatchEulerDiscreteScheduler`, for its shift.
    """

    default_target = "velocity"
    prediction_type = "flow"
    config: Mapping[str, Any]

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timesteps.float() / TIMESTEPS
        return 1 - sigma, sigma

    def _velocity(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(a), torch.ones_like(b)

    def on_schedule(self, timesteps: Tensor, tokens: int) -> Tensor:
        """Shift noise levels as `FlowMatchEulerDiscreteScheduler` does; 0 counts as 1, its lowest timestep."""
        mu = resolution_shift(self.config, tokens)
        shift = self.config["shift"] if mu is None else mu
        if mu is not None and self.config["time_shift_type"] == "exponential":
            shift = math.exp(mu)
        sigma = timesteps.clamp_min(1).float() / TIMESTEPS
        return TIMESTEPS * (shift * sigma / (1 + (shift - 1) * sigma))


def resolution_shift(config: Mapping[str, Any], tokens: int) -> float | None:
    """Return `mu` of a scheduler with these settings for latents with so many tokens; None if its shift is fixed.

    Source: Esser et al., Scaling Rectified Flow Transformers (2024); `calculate_shift` of diffusers' FLUX pipeline.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    base_tokens, max_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - base_tokens) / (max_tokens - base_tokens)
