"""Stored errors by timestep: of the true class and of its strongest rivals; and how long the true class survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

RIVALS = 3
# Timesteps that differ from image to image are put into so many bands of the 1000.
_BANDS = 20
# Errors held in float64 at a time, in elements.
_BLOCK = 2**24


@dataclass(frozen=True)
class ErrorsByTime:
    """Mean errors over images, on trials in which every class was evaluated; u timesteps, k classes.

    Attributes:
        timesteps: Of the trials, or the middle of their band. `(u,)`.
        true: Error of the true class, the mean of several. `(u,)`.
        rivals: Errors of the wrong classes with the lowest mean error over an image's trials, the strongest first.
            `(r, u)` with r at most `RIVALS`.
        by_class: Error of the strongest rival minus that of the true class, by true class; NaN where no image has it.
            `(k, u)`.
        images: How many have a true class, a wrong one and such a trial.
    """

    timesteps: Floats
    true: Floats
    rivals: Floats
    by_class: Floats
    images: int


def truth_of(label: Array, classes: int) -> npt.NDArray[np.bool_]:
    """Which classes are true of each image. `(n,)` or `(n, k)` -> `(n, k)`."""
    if label.ndim == 2:
        return label.astype(np.bool_)
    return label[:, None] == np.arange(classes)


def errors_by_time(errors: Array, timesteps: Array, truth: npt.NDArray[np.bool_]) -> ErrorsByTime | None:
    """Average stored errors.

    Args:
        errors: NaN where nothing was evaluated. `(n, k, t)`.
        timesteps: `(n, t)`.
        truth: Which classes are true. `(n, k)`.

    Returns:
        The means; None if there is no image to take them of.
    """
    complete: Array = np.all(np.isfinite(errors), axis=1)
    count = truth.sum(1)
    useful: Array = complete.any(axis=1) & (count > 0) & (count < truth.shape[1])
    if not useful.any():
        return None
    place, centres = _places(timesteps, complete & useful[:, None])
    rivals, k, u = min(RIVALS, truth.shape[1] - int(count[useful].max())), truth.shape[1], len(centres)
    sums, counts = np.zeros((1 + rivals, u)), np.zeros(u)
    margins, members = np.zeros((k, u)), np.zeros((k, u))
    for block in _blocks(np.flatnonzero(useful), errors[0].size):
        trials = complete[block]
        found = _true_and_rivals(errors[block].astype(np.float64), trials, truth[block], rivals)
        member = _member(place[block], trials, u)
        sums += np.einsum("ret,rtu->eu", found, member)
        counts += member.sum((0, 1))
        by_class = truth[block].astype(np.float64)
        margins += np.einsum("rk,rt,rtu->ku", by_class, found[:, 1] - found[:, 0], member, optimize=True)
        members += np.einsum("rk,rtu->ku", by_class, member, optimize=True)
    mean = sums / counts
    by_class = np.divide(margins, members, out=np.full((k, u), np.nan), where=members > 0)
    return ErrorsByTime(centres, mean[0], mean[1:], by_class, int(useful.sum()))


def _places(timesteps: Array, counted: npt.NDArray[np.bool_]) -> tuple[Array, Floats]:
    """Which timestep or band each trial belongs to, and where these are. `(n, t)`, `(u,)`."""
    found = np.unique(timesteps[counted])
    if len(found) <= _BANDS:
        return np.searchsorted(found, timesteps).clip(max=len(found) - 1), found.astype(np.float64)
    width = 1000 / _BANDS
    band = (timesteps // width).clip(0, _BANDS - 1).astype(np.int64)
    there = np.unique(band[counted])
    return np.searchsorted(there, band).clip(max=len(there) - 1), (there.astype(np.float64) + 0.5) * width


def _blocks(index: Array, size: int) -> Iterator[Array]:
    rows = max(1, _BLOCK // size)
    for start in range(0, len(index), rows):
        yield index[start : start + rows]


def _true_and_rivals(errors: Floats, trials: Array, truth: Array, rivals: int) -> Floats:
    """Errors of the true class and its strongest rivals, 0 where a trial does not count. `(r, 1 + rivals, t)`."""
    errors = np.where(trials[:, None], errors, 0)
    mean = errors.sum(2) / trials.sum(1)[:, None]
    ranked = np.where(truth, np.inf, mean).argsort(1, kind="stable")[:, :rivals]
    true = np.einsum("rk,rkt->rt", truth / truth.sum(1)[:, None], errors)
    return np.concatenate([true[:, None], np.take_along_axis(errors, ranked[..., None], 1)], 1)


def _member(place: Array, trials: Array, u: int) -> Floats:
    """1 where a trial counts and is of a timestep. `(r, t, u)`."""
    return ((place[..., None] == np.arange(u)) & trials[..., None]).astype(np.float64)


def survival(stage: Array, truth: npt.NDArray[np.bool_], stages: int) -> Floats:
    """Share of true classes that are left after each stage, from 1 before the first. `(1 + stages,)`.

    Args:
        stage: Stages each class survived. `(n, k)`.
        truth: Which classes are true. `(n, k)`.
        stages: How many there are.
    """
    survived = stage[truth]
    if not survived.size:
        return np.full(1 + stages, np.nan)
    return np.array([(survived >= s).mean() for s in range(1 + stages)])
