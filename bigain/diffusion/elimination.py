"""Staged elimination of classes (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.tokens.precision import widest_float

ErrorFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Elimination:
    """The outcome for a batch of images.

    Attributes:
        errors: Error of every (image, class, trial), NaN where it was not evaluated. `(b, k, t)`, float32.
        survivors: Classes left after each stage, ascending, `(b, s)` int64 each; padded with -1 for images with fewer,
            and -1 throughout for images that were finished earlier.
        prediction: The last survivor. `(b,)`, int64.
        bands: Errors by frequency, if they were asked for. `(b, k, t, 1 + bands)`, float32.
    """

    errors: Tensor
    survivors: tuple[Tensor, ...]
    prediction: Tensor
    bands: Tensor | None = None


def mean_errors(errors: Tensor) -> Tensor:
    """Average over the evaluated trials in float64; infinite if there are none. `(b, k, t)` -> `(b, k)`."""
    evaluated = ~errors.isnan()
    total = errors.to(widest_float(errors.device)).masked_fill(~evaluated, 0).sum(2)
    return torch.where(evaluated.any(2), total / evaluated.sum(2), torch.inf)


def staged_elimination(
    error_function: ErrorFunction,
    images: int,
    classes: int,
    stages: Sequence[Sequence[int]],
    keep: Sequence[int],
    device: torch.device | None = None,
) -> Elimination:
    """Evaluate survivors on new trials stage by stage and keep the classes with the lowest mean error.

    Args:
        error_function: Called once per stage that has trials, with int64 tensors image `(p,)`, trial `(p,)` and the
            classes alive for each pair `(p, s)`; returns float32 errors `(p, s)`.
        images: Number of images b.
        classes: Number of classes k.
        stages: New trial indices of each stage, disjoint.
        keep: Survivors of each stage; the last is 1. On ties the lower class index survives.
        device: Device of the index tensors.
    """
    trials = 1 + max(trial for stage in stages for trial in stage)
    errors = torch.full((images, classes, trials), torch.nan, device=device, dtype=torch.float32)
    alive = torch.arange(classes, device=device).expand(images, classes)
    history = []
    for new_trials, count in zip(stages, keep, strict=True):
        # The released budget can leave a stage without new trials, e.g. the third of [2, 3, 4].
        if new_trials:
            image = torch.arange(images, device=device).repeat_interleave(len(new_trials))
            trial = torch.tensor(new_trials, device=device).repeat(images)
            label = alive.repeat_interleave(len(new_trials), dim=0)
            errors[image[:, None], label, trial[:, None]] = error_function(image, trial, label)
        score = mean_errors(errors).gather(1, alive)
        best = score.argsort(dim=1, stable=True)[:, :count]
        alive = alive.gather(1, best).sort(dim=1).values
        history.append(alive)
    return Elimination(errors, tuple(history), alive[:, 0])
