"""Margins between the true class and its best rival, from stored errors: the subject of Theorem 1 of BiGain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bigain.errors import InputError
from bigain.report.pairing import shared_images
from bigain.report.statistics import ALPHA, ENOUGH
from bigain.runs.columns import read_columns
from bigain.runs.results import Run

Floats = npt.NDArray[np.float64]

# The end of diffusion time.
TIME = 1000
DRAWS = 2000
_SIZES = ("mu", "sigma", "sigma_over_noise", "r", "mu_over_sigma")
_IN_FILES = (*_SIZES, "theorem_bound", "sigma_of_means", "cantelli_bound", "error")
# Weights of resampled images in memory at a time.
_BLOCK = 2**22


@dataclass(frozen=True)
class Errors:
    """The stored errors of a run.

    Attributes:
        image_id: `(n,)`, text.
        label: True classes. `(n,)`.
        errors: Of every class and trial, NaN where it was not evaluated. `(n, k, t)`.
        timesteps: Timestep of every trial, -1 where none was evaluated. `(n, t)`.
        bands: Parts of the errors by frequency, b = 0 if the run stored none. `(n, k, t, b)`.
    """

    image_id: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]
    errors: npt.NDArray[np.floating[Any]]
    timesteps: npt.NDArray[np.int64]
    bands: npt.NDArray[np.floating[Any]]


def read_errors(run: Run) -> Errors:
    """Load the stored errors of a classification with one label per image.

    Raises:
        InputError: If the run is of a different kind, or its file is missing or damaged.
    """
    if run.task != "classification":
        raise InputError(f"{run.path} is a run of {run.task}; margins between classes are of classification only")
    (label,) = read_columns(run.path, "label")
    if label.ndim != 1:
        raise InputError(f"{run.path} has several labels per image; a margin is between one true class and the others")
    image_id, errors, timesteps = read_columns(run.path, "image_id", "errors", "timesteps")
    by_frequency = "bands" in run.results["protocol"]
    bands = read_columns(run.path, "bands")[0] if by_frequency else np.zeros((*errors.shape, 0), np.float32)
    return Errors(image_id, label, errors, timesteps.astype(np.int64, copy=False), bands)


def share(first: Errors, second: Errors, names: tuple[str, str]) -> tuple[Errors, Errors, npt.NDArray[np.bool_]]:
    """Return two runs on the m images that both have, and the trials in which both evaluated every class. `(m, t)`.

    Errors are float64 and undefined outside these trials. `names` are the directories of the runs, for messages.

    Raises:
        InputError: If they have different classes, or no image and trial in which both evaluated every class.
    """
    if first.errors.shape[1] != second.errors.shape[1]:
        raise InputError(f"{names[0]} and {names[1]} have {first.errors.shape[1]} and {second.errors.shape[1]} classes")
    rows = shared_images(first.image_id, second.image_id)
    if 0 not in (bands := [run.bands.shape[3] for run in (first, second)]) and bands[0] != bands[1]:
        raise InputError(f"{names[0]} and {names[1]} store {bands[0] - 1} and {bands[1] - 1} bands; give both the same")
    t = min(first.timesteps.shape[1], second.timesteps.shape[1])
    first_errors, second_errors = (run.errors[index, :, :t] for run, index in zip((first, second), rows, strict=True))
    times, second_times = (run.timesteps[index, :t] for run, index in zip((first, second), rows, strict=True))
    trials = np.isfinite(first_errors).all(1) & np.isfinite(second_errors).all(1) & (times == second_times)
    used = trials.any(0)
    if not used.any():
        raise InputError(f"{names[0]} and {names[1]} share no trial in which both evaluated every class")
    ids, label = first.image_id[rows[0]], first.label[rows[0]]
    first_shared, second_shared = (
        Errors(ids, label, errors[:, :, used].astype(np.float64), times[:, used], run.bands[index, :, :t][:, :, used])
        for errors, run, index in zip((first_errors, second_errors), (first, second), rows, strict=True)
    )
    return first_shared, second_shared, trials[:, used]


@dataclass(frozen=True)
class Margins:
    """Margins of the m images that have at least one of the chosen trials.

    Index of each image, means of the margin and of its square over the image's trials, and their number. `(m,)` each.
    Mean variance over the noises of a timestep of the image, too; None with one noise per timestep.
    """

    image: npt.NDArray[np.int64]
    mean: Floats
    square: Floats
    trials: npt.NDArray[np.int64]
    noise: Floats | None = None

    @property
    def mu(self) -> float:
        """Mean margin; every image weighs the same."""
        return float(self.mean.mean())

    @property
    def sigma(self) -> float:
        """Deviation of single margins around `mu`, over images and trials."""
        return float(np.sqrt(max(0.0, float(self.square.mean()) - self.mu**2)))

    @property
    def sigma_over_noise(self) -> float | None:
        """The theorem's deviation, over noises at one timestep of one image; None with one noise per timestep."""
        return None if self.noise is None else float(np.sqrt(self.noise.mean()))

    @property
    def theorem_sigma(self) -> float:
        """The deviation in `r` and Theorem 1's bound: over noises where there are several, otherwise `sigma`."""
        return self.sigma if self.sigma_over_noise is None else self.sigma_over_noise

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
        """`theorem_sigma / mu`; None if the mean margin is not positive."""
        return self.theorem_sigma / self.mu if self.mu > 0 else None

    @property
    def mu_over_sigma(self) -> float | None:
        """`mu / theorem_sigma`, which is 1 / r and exists below 0, too; None if all margins are the same."""
        return self.mu / self.theorem_sigma if self.theorem_sigma > 0 else None

    @property
    def theorem_bound(self) -> float:
        """Theorem 1's bound, `(sigma^2 / n) / (mu^2 + sigma^2 / n)` with `theorem_sigma`; 1 if `mu` is not positive."""
        return cantelli(self.mu, self.theorem_sigma / self.n**0.5)

    @property
    def cantelli_bound(self) -> float:
        """Cantelli's bound from the spread of the images' means: `error` never exceeds it."""
        return cantelli(self.mu, self.sigma_of_means)

    @property
    def error(self) -> float:
        """Share of images whose mean margin is not positive: wrong, or a tie, on these trials alone."""
        return float((self.mean <= 0).mean())

    def row(self) -> dict[str, float | None]:
        """Return plain values for a file."""
        return {name: getattr(self, name) for name in _IN_FILES}


def cantelli(mu: float, sigma: float) -> float:
    """Return Cantelli's bound on the chance that a number of this mean and deviation is at most 0; 1 if `mu <= 0`."""
    return sigma**2 / (mu**2 + sigma**2) if mu > 0 else 1.0


def margins(stored: Errors, trials: npt.NDArray[np.bool_]) -> Margins | None:
    """Return margins over the trials that count `(n, t)`; None if no image has one: see `trial_margins`."""
    has_trial = trials.any(1)
    if not has_trial.any():
        return None
    values, centred, count = trial_margins(stored, trials, stored.errors[..., None])
    margin, noise = values[..., 0], None if centred is None else (centred[..., 0] ** 2).sum(1) / count
    return Margins(np.flatnonzero(has_trial), margin.sum(1) / count, (margin**2).sum(1) / count, count, noise)


def trial_margins(
    stored: Errors, trials: npt.NDArray[np.bool_], values: npt.NDArray[np.floating[Any]]
) -> tuple[Floats, Floats | None, npt.NDArray[np.int64]]:
    """Return the margins of the m images with a trial that counts, 0 at the trials that do not.

    The rival of the true class is the wrong class with the lowest mean error over the trials.

    Args:
        stored: Stored errors.
        trials: Which trials count. `(n, t)`.
        values: Errors, or parts of them, whose differences are taken. `(n, k, t, b)`.

    Returns:
        The margins `(m, t, b)`; the same around their means over the J noises of an image and timestep, scaled by
        `sqrt(J / (J - 1))` so that means of products are (co)variances, None if a J is 1; the numbers of trials `(m,)`.
    """
    rows = np.flatnonzero(trials.any(1))
    trials, label, timesteps, image = trials[rows], stored.label[rows], stored.timesteps[rows], np.arange(len(rows))
    count = trials.sum(1)
    means = np.where(trials[:, None], stored.errors[rows], 0).sum(2) / count[:, None]
    means[image, label] = np.inf
    margin = values[rows, means.argmin(1)].astype(np.float64) - values[rows, label]
    margin = np.where(trials[..., None], margin, 0)
    cell = np.where(trials, image[:, None] * TIME + timesteps, -1)
    _, group, noises = np.unique(cell, return_inverse=True, return_counts=True)
    group = group.reshape(cell.shape)
    size, sums = noises[group][..., None], np.zeros((len(noises), margin.shape[2]))
    if (size[trials] < 2).any():
        return margin, None, count
    np.add.at(sums, group, margin)
    centred = (margin - sums[group] / size) * np.sqrt(size / np.maximum(1, size - 1))
    return margin, np.where(trials[..., None], centred, 0), count


def change_intervals(
    pairs: Sequence[tuple[Margins, Margins]], images: int, title: str = "resampling"
) -> list[tuple[float, float] | None]:
    """Return the 95 % percentile interval of the change of 1 / r from the first to the second, over resampled images.

    r itself has no interval: it goes to infinity where the margin goes to 0.

    Args:
        pairs: Margins of two runs on the same trials, such as those of a band of timesteps.
        images: Number of images; every pair has margins of all or some of them.
        title: Of the progress bar.

    Returns:
        The ends of each interval; None with fewer than 10 images, or if all margins are equal in some draw.
    """
    columns = np.zeros((images, len(pairs), 5))
    for i, pair in enumerate(pairs):
        # Variances over noises are averaged over images; those over images are taken around the mean of each draw.
        terms = [term for side in pair for term in (side.mean, side.square if side.noise is None else side.noise)]
        columns[pair[0].image, i] = np.stack([*terms, np.ones(len(pair[0].mean))], axis=1)
    totals = resampled(columns, title)
    # By draw, pair and run.
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, square = np.moveaxis((totals[..., :4] / totals[..., 4:]).reshape(*totals.shape[:2], 2, 2), 3, 0)
    over_images = np.array([[side.noise is None for side in pair] for pair in pairs])
    sigma = np.sqrt(np.maximum(0, square - over_images * mean**2))
    separation = np.divide(mean, sigma, out=np.full(mean.shape, np.nan), where=sigma > 0)
    changes = separation[..., 1] - separation[..., 0]
    ends = np.quantile(changes, [ALPHA / 2, 1 - ALPHA / 2], axis=0).T.tolist()
    return [
        (low, high) if len(first.mean) >= ENOUGH and np.isfinite(column).all() else None
        for (first, _), (low, high), column in zip(pairs, ends, changes.T, strict=True)
    ]


def resampled(columns: Floats, title: str = "resampling") -> Floats:
    """Return the sums of columns over the images of each draw with replacement. `(n, ...)` -> `(draws, ...)`."""
    images, generator, blocks = len(columns), np.random.default_rng(0), []
    step = max(1, _BLOCK // images)
    with tqdm(total=DRAWS, desc=title, unit="draw", disable=None, leave=False, delay=1) as progress:
        for start in range(0, DRAWS, step):
            draws = min(step, DRAWS - start)
            drawn = generator.integers(images, size=(draws, images), dtype=np.int32)
            drawn += np.arange(0, draws * images, images, dtype=np.int32)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=draws * images).reshape(draws, images).astype(np.float64)
            blocks.append((weights @ columns.reshape(images, -1)).reshape(draws, *columns.shape[1:]))
            progress.update(draws)
    return np.concatenate(blocks)
