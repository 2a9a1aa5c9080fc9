"""Margins between the true class and its best rival, from stored errors: what Theorem 1 of BiGain is about."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.report.runs import Run
from bigain.report.statistics import ALPHA

Floats = npt.NDArray[np.float64]

# Of diffusion time, which bands divide.
TIME = 1000
DRAWS = 2000
# Resampled images at a time, in elements.
_BLOCK = 2**22


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


@dataclass(frozen=True)
class Margins:
    """Margins of the images that have any of the trials in question; m of them.

    Attributes:
        mean: Mean margin of each image over its trials. `(m,)`.
        square: Mean squared margin of each image. `(m,)`.
        trials: Trials of each image. `(m,)`.
    """

    mean: Floats
    square: Floats
    trials: npt.NDArray[np.int64]

    @property
    def mu(self) -> float:
        """Mean margin; every image weighs the same."""
        return float(self.mean.mean())

    @property
    def sigma(self) -> float:
        """Deviation of single margins around `mu`, over images and trials."""
        return float(np.sqrt(max(0.0, float(self.square.mean()) - self.mu**2)))

    @property
    def sigma_of_means(self) -> float:
        """Deviation of the images' mean margins around `mu`."""
        return float(self.mean.std())

    @property
    def n(self) -> float:
        """Trials per image."""
        return float(self.trials.mean())

    @property
    def r(self) -> float | None:
        """`sigma / mu`; None if the mean margin is not positive."""
        return self.sigma / self.mu if self.mu > 0 else None

    @property
    def theorem(self) -> float:
        """Theorem 1's bound on the error, `(sigma^2 / n) / (mu^2 + sigma^2 / n)`; 1 if `mu` is not positive."""
        return cantelli(self.mu, self.sigma / self.n**0.5)

    @property
    def bound(self) -> float:
        """Cantelli's bound from the spread of the images' means: `error` never exceeds it."""
        return cantelli(self.mu, self.sigma_of_means)

    @property
    def error(self) -> float:
        """Share of images whose mean margin is not positive: wrong, or a tie, on these trials alone."""
        return float((self.mean <= 0).mean())


def cantelli(mu: float, sigma: float) -> float:
    """Largest chance of a number of this mean and deviation to be 0 or less (Cantelli); 1 if the mean is not above."""
    return sigma**2 / (mu**2 + sigma**2) if mu > 0 else 1.0


def read_errors(run: Run) -> Errors:
    """Read the stored errors of a classification with one label per image.

    Raises:
        InputError: If it is something else, or the file is missing or damaged.
    """
    if run.task != "classification":
        raise InputError(f"{run.path} is a run of {run.task}; margins between classes are of classification only")
    file = run.path / "predictions" / "predictions.npz"
    if not file.is_file():
        raise InputError(f"{file} does not exist; run the command that made {run.path} again")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as columns:
            label = columns["label"]
            if label.ndim == 1:
                found = Errors(
                    columns["image_id"], label, columns["errors"], columns["timesteps"].astype(np.int64, copy=False)
                )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged ({error}); run the command that made {run.path} again") from error
    if label.ndim != 1:
        raise InputError(
            f"{run.path} has several labels per image; a margin is between one true class and the others, so expected "
            "a dataset with one label per image"
        )
    _check(found, run)
    return found


def _check(found: Errors, run: Run) -> None:
    n = len(found.image_id)
    shape = found.errors.shape
    fits = len(shape) == 3 and shape[0] == n and found.timesteps.shape == (n, shape[2]) and len(found.label) == n
    if not n or not fits or shape[1] < 2 or not 0 <= found.label.min() <= found.label.max() < shape[1]:
        raise InputError(
            f"{run.path}/predictions/predictions.npz is damaged: errors {shape} and timesteps {found.timesteps.shape} "
            f"of {n} images; run the command that made {run.path} again"
        )


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


def margins(errors: Floats, label: npt.NDArray[np.int64], trials: npt.NDArray[np.bool_]) -> Margins | None:
    """Margins of the true class to its best rival: the wrong class with the lowest mean error over the same trials.

    Args:
        errors: Of one run. `(n, k, t)`.
        label: True class. `(n,)`.
        trials: Which trials count. `(n, t)`, bool.

    Returns:
        Those of images with at least one such trial; None if there is no image.
    """
    there = trials.any(1)
    if not there.any():
        return None
    errors, label, trials = errors[there], label[there], trials[there]
    count = trials.sum(1)
    image = np.arange(len(label))
    means = np.where(trials[:, None], errors, 0).sum(2) / count[:, None]
    means[image, label] = np.inf
    margin = np.where(trials, errors[image, means.argmin(1)] - errors[image, label], 0)
    return Margins(margin.sum(1) / count, (margin**2).sum(1) / count, count)


def change_interval(first: Margins, second: Margins, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of the change of r from the first to the second, over resampled images.

    Args:
        first: Margins of the one run.
        second: Of the other, of the same images.
        seed: The interval is a function of the margins and of this.

    Returns:
        Its ends; None if a mean margin is not positive in some draw, so that r has no value there.
    """
    found = np.concatenate(list(_changes(first, second, np.random.default_rng(seed))))
    if not np.isfinite(found).all():
        return None
    low, high = np.quantile(found, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _changes(first: Margins, second: Margins, generator: np.random.Generator) -> Iterator[Floats]:
    m = len(first.mean)
    at_once = max(1, _BLOCK // m)
    for start in range(0, DRAWS, at_once):
        weights = generator.multinomial(m, np.full(m, 1 / m), size=min(at_once, DRAWS - start)) / m
        yield _ratio(weights @ second.mean, weights @ second.square) - _ratio(
            weights @ first.mean, weights @ first.square
        )


def _ratio(mean: Floats, square: Floats) -> Floats:
    """`sigma / mu` of each draw, NaN where mu is not positive."""
    r = np.full(len(mean), np.nan)
    sigma = np.sqrt(np.maximum(0, square - mean**2))
    np.divide(sigma, mean, out=r, where=mean > 0)
    return r
