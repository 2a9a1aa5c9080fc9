"""Errors that runs stored of every image, class and trial, and those of two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.runs.columns import read_columns
from bigain.runs.results import Run

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """What a run stored of its images.

    Attributes:
        image_id: `(n,)`, text.
        label: True class. `(n,)`.
        errors: Of every class and trial, NaN where it was not evaluated. `(n, k, t)`, float32.
        timesteps: Of every trial, -1 where none was evaluated. `(n, t)`.
    """

    image_id: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]
    errors: npt.NDArray[np.float32]
    timesteps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """Errors of two runs, side by side, on the trials in which both have evaluated every class.

    Attributes:
        label: True class of each image. `(n,)`.
        first: Errors of the first run; meaningless outside `trials`. `(n, k, t)`, float64.
        second: Errors of the second run. `(n, k, t)`, float64.
        timesteps: `(n, t)`.
        trials: Which trials of which image both runs share over all classes. `(n, t)`, bool.
    """

    label: npt.NDArray[np.int64]
    first: Floats
    second: Floats
    timesteps: npt.NDArray[np.int64]
    trials: npt.NDArray[np.bool_]

    def band(self, low: float, high: float) -> npt.NDArray[np.bool_]:
        """The shared trials with timesteps in [low, high). `(n, t)`."""
        return self.trials & (self.timesteps >= low) & (self.timesteps < high)


def read_errors(run: Run) -> Errors:
    """Read the stored errors of a classification with one label per image.

    Raises:
        InputError: If it is something else, or the file is missing or damaged.
    """
    if run.task != "classification":
        raise InputError(f"{run.path} is a run of {run.task}; margins between classes are of classification only")
    (label,) = read_columns(run.path, "label")
    if label.ndim != 1:
        raise InputError(
            f"{run.path} has several labels per image; a margin is between one true class and the others, so expected "
            "a dataset with one label per image"
        )
    image_id, errors, timesteps = read_columns(run.path, "image_id", "errors", "timesteps")
    return Errors(image_id, label, errors, timesteps.astype(np.int64, copy=False))


def share(first: Errors, second: Errors, names: tuple[str, str]) -> Shared:
    """Put two runs side by side, on the images that both have.

    Args:
        first: Of the first run.
        second: Of the second run.
        names: Their directories, for messages.

    Raises:
        InputError: If they have other classes, or no image and trial in which both evaluated every class.
    """
    if first.errors.shape[1] != second.errors.shape[1]:
        raise InputError(f"{names[0]} and {names[1]} have {first.errors.shape[1]} and {second.errors.shape[1]} classes")
    mine: Any = slice(None)
    theirs: Any = slice(None)
    if not np.array_equal(first.image_id, second.image_id):
        _, mine, theirs = np.intersect1d(first.image_id, second.image_id, assume_unique=True, return_indices=True)
    t = min(first.timesteps.shape[1], second.timesteps.shape[1])
    times = first.timesteps[mine, :t]
    a, b = first.errors[mine, :, :t], second.errors[theirs, :, :t]
    trials = np.isfinite(a).all(1) & np.isfinite(b).all(1) & (times == second.timesteps[theirs, :t])
    used = trials.any(0)
    if not used.any():
        raise InputError(f"{names[0]} and {names[1]} share no trial in which both evaluated every class")
    a, b = a[:, :, used], b[:, :, used]
    return Shared(first.label[mine], a.astype(np.float64), b.astype(np.float64), times[:, used], trials[:, used])
