"""Curves and matrices over all images of a classification: errors by timestep, survival, confusion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigain.report.figures import COLOURS, GREY, plain_ticks
from bigain.runs.numbers import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

RIVALS = ("strongest rival", "second rival", "third rival")
# Number of bands of the 1000 timesteps for runs whose timesteps differ between images.
_BANDS = 20
# Most classes that are named on an axis, and whose counts are printed.
_MOST_NAMED, _MOST_COUNTED = 40, 20
_LONGEST = 28


class ErrorsByTime(NamedTuple):
    """Mean errors over images, on trials in which every class was evaluated; u timesteps, k classes.

    Attributes:
        timesteps: Timesteps of the trials, or the centres of their bands. `(u,)`.
        true: Error of the true class; the mean over classes for images with several. `(u,)`.
        rivals: Errors of the wrong classes with the lowest mean error over an image's trials, strongest first.
            `(r, u)` with r at most 3.
        by_class: Error of the strongest rival minus that of the true class, by true class; NaN for classes without
            images. `(k, u)`.
        images: Number of images that have a true class, a wrong class and such a trial.
    """

    timesteps: Floats
    true: Floats
    rivals: Floats
    by_class: Floats
    images: int


def truth_of(label: Array, classes: int) -> npt.NDArray[np.bool_]:
    """Return which classes are true of each image. `(n,)` or `(n, k)` -> `(n, k)`."""
    return label.astype(np.bool_) if label.ndim == 2 else label[:, None] == np.arange(classes)


def errors_by_time(
    errors: Callable[[], Iterable[Array]], timesteps: Array, truth: npt.NDArray[np.bool_]
) -> ErrorsByTime | None:
    """Average errors over images, block by block.

    Args:
        errors: Returns the blocks of all errors; called twice. NaN where nothing was evaluated. `(b, k, t)`.
        timesteps: `(n, t)`.
        truth: Which classes are true. `(n, k)`.

    Returns:
        The means; None if no image qualifies.
    """
    complete: Array = np.concatenate([np.isfinite(block).all(axis=1) for block in errors()])
    count = truth.sum(1)
    useful: Array = complete.any(axis=1) & (count > 0) & (count < truth.shape[1])
    if not useful.any():
        return None
    bins, centres = _time_bins(timesteps, complete & useful[:, None])
    rivals, k, u = min(len(RIVALS), truth.shape[1] - int(count[useful].max())), truth.shape[1], len(centres)
    sums, counts = np.zeros((1 + rivals, u)), np.zeros(u)
    margins, member_counts = np.zeros((k, u)), np.zeros((k, u))
    start = 0
    for values in errors():
        used = np.flatnonzero(useful[start : start + len(values)])
        rows = start + used
        start += len(values)
        trials, by_class = complete[rows], truth[rows].astype(np.float64)
        block_errors = np.where(trials[:, None], values[used].astype(np.float64), 0)
        mean = np.where(truth[rows], np.inf, block_errors.sum(2) / trials.sum(1)[:, None])
        strongest = mean.argsort(1, kind="stable")[:, :rivals]
        true = np.einsum("rk,rkt->rt", by_class / by_class.sum(1)[:, None], block_errors)
        # Errors of the true class and its strongest rivals. (r, 1 + rivals, t)
        ranked = np.concatenate([true[:, None], np.take_along_axis(block_errors, strongest[..., None], 1)], 1)
        # 1 where a trial counts and belongs to the timestep. (r, t, u)
        membership = ((bins[rows][..., None] == np.arange(u)) & trials[..., None]).astype(np.float64)
        sums += np.einsum("ret,rtu->eu", ranked, membership)
        counts += membership.sum((0, 1))
        margins += np.einsum("rk,rt,rtu->ku", by_class, ranked[:, 1] - ranked[:, 0], membership, optimize=True)
        member_counts += np.einsum("rk,rtu->ku", by_class, membership, optimize=True)
    mean = sums / counts
    margin = np.divide(margins, member_counts, out=np.full((k, u), np.nan), where=member_counts > 0)
    return ErrorsByTime(centres, mean[0], mean[1:], margin, int(useful.sum()))


def _time_bins(timesteps: Array, used: npt.NDArray[np.bool_]) -> tuple[Array, Floats]:
    """Return the index of each trial's timestep or band, and the timesteps or centres. `(n, t)`, `(u,)`."""
    distinct = np.unique(timesteps[used])
    if len(distinct) <= _BANDS:
        return np.searchsorted(distinct, timesteps).clip(max=len(distinct) - 1), distinct.astype(np.float64)
    width = 1000 / _BANDS
    band = (timesteps // width).clip(0, _BANDS - 1).astype(np.int64)
    present = np.unique(band[used])
    return np.searchsorted(present, band).clip(max=len(present) - 1), (present.astype(np.float64) + 0.5) * width


def survival(stage: Array, truth: npt.NDArray[np.bool_], stages: int) -> Floats:
    """Return the share of true classes `(n, k)` left after each stage, preceded by 1. `(1 + stages,)`.

    `stage` is the number of stages that each class survived. `(n, k)`.
    """
    return np.array([(stage[truth] >= s).mean() for s in range(1 + stages)])


def error_figure(curves: ErrorsByTime) -> Figure:
    """Draw the errors of the true class and its rivals by timestep, and the margins of the rivals."""
    figure, (level, margin) = _figure(9.6, 3.6, panels=2)
    for name, colour, errors in zip(("true class", *RIVALS), COLOURS, (curves.true, *curves.rivals), strict=False):
        style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1.2, "label": name}
        level.plot(curves.timesteps, errors, **style)
        if errors is not curves.true:
            margin.plot(curves.timesteps, errors - curves.true, **style)
    level.set(title=f"mean error of {counted(curves.images, 'image')}", xlabel="timestep", xlim=(0, 1000), yscale="log")
    level.legend()
    margin.axhline(0, color="black", linewidth=0.8)
    margin.set(title="error above the true class's", xlabel="timestep", xlim=(0, 1000))
    sizes = np.abs(curves.rivals - curves.true)
    if (sizes > 0).any():
        # Shows the margins of early and late timesteps, of either sign.
        margin.set_yscale("symlog", linthresh=float(np.median(sizes[sizes > 0])))
    for axes in (level, margin):
        plain_ticks(axes.yaxis)
    return figure


def class_figure(curves: ErrorsByTime, names: Sequence[str]) -> Figure:
    """Draw the margin to the strongest rival by true class and timestep, at most for the 40 classes with the lowest."""
    classes = np.flatnonzero(np.isfinite(curves.by_class).any(1))
    # Relative to the largest of each timestep, because sizes differ by orders of magnitude between timesteps.
    scale = np.nanmax(np.abs(curves.by_class), axis=0)
    relative = curves.by_class / np.where(scale > 0, scale, 1)
    if len(classes) > _MOST_NAMED:
        classes = np.sort(classes[np.nanmean(relative[classes], 1).argsort(kind="stable")[:_MOST_NAMED]])
    figure, (axes,) = _figure(6.4, 1.4 + 0.2 * max(4, len(classes)))
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(relative[classes], aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(classes)), [_short(names[int(k)]) for k in classes])
    ticks = np.unique(np.linspace(0, len(curves.timesteps) - 1, min(10, len(curves.timesteps))).round().astype(int))
    axes.set_xticks(ticks, [f"{curves.timesteps[i]:g}" for i in ticks])
    axes.set(title="strongest rival's error above the true class's, by true class", xlabel="timestep")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="relative to the timestep's largest")
    return figure


def survival_figure(shares: Floats, chance: Sequence[float]) -> Figure:
    """Draw the share of true classes left after each stage beside the share of all classes."""
    figure, (axes,) = _figure(4.8, 3.4)
    axes.plot(100 * shares, color=COLOURS[0], marker="o", label="true class")
    axes.plot(100 * np.asarray(chance), color=GREY, linestyle="--", label="by chance")
    axes.set_xticks(range(len(shares)), ["start", *(f"stage {stage}" for stage in range(1, len(shares)))])
    axes.set(title="survival of the true class", ylabel="left (%)", ylim=(0, 104))
    axes.legend()
    return figure


def confusion_figure(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Draw predictions by true class as shares of its images, with counts for at most 20 classes."""
    counts = np.asarray(matrix)
    side = 2.4 + (0.28 if len(counts) <= _MOST_COUNTED else 0.16 if len(counts) <= _MOST_NAMED else 0.03) * len(counts)
    figure, (axes,) = _figure(side + 0.6, side)
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(counts) <= _MOST_COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 60 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    if len(counts) <= _MOST_NAMED:
        labels = [_short(name) for name in names]
        axes.set_xticks(range(len(counts)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(counts)), labels, fontsize=7)
    axes.set(title="confusion matrix", xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="share of the true class's images (%)", shrink=0.8)
    return figure


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
