"""Metrics of images with several labels: top-1 precision, and average precision read both ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bigain.metrics.accuracy import Estimate, proportion
from bigain.metrics.records import ImageRecord

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_RESAMPLES = 1000


def multilabel_metrics(records: Sequence[ImageRecord], classes: int) -> dict[str, Estimate]:
    """Metrics of multi-label images.

    Images without any label are left out, except from `top1_precision_all`, which counts them as wrong as the release
    does; it is told only if there are such images.

    Args:
        records: Classified images.
        classes: Number of classes.

    Returns:
        `top1_precision`: the predicted class is one of the image's; `map_macro`: mean over classes of the average
        precision over images; `map_sample`: mean over images of the average precision over classes.
    """
    labelled = [record for record in records if record.labels]
    if not labelled:
        return {}
    right = sum(record.prediction in record.labels for record in labelled)
    metrics = {"top1_precision": proportion(right, len(labelled))}
    if len(labelled) < len(records):
        metrics["top1_precision_all"] = proportion(right, len(records))
    scores = np.stack([shared_scores(record, classes) for record in labelled])
    truth = np.zeros((len(labelled), classes), np.bool_)
    for row, record in zip(truth, labelled, strict=True):
        row[list(record.labels)] = True
    return {**metrics, "map_macro": map_macro(scores, truth), "map_sample": map_sample(scores, truth)}


def shared_scores(record: ImageRecord, classes: int) -> Array:
    """Score of every class on the trials that all classes share: how far its error lies below the classes' mean.

    Subtracting the mean makes scores comparable across images, whose errors differ more than their classes do.

    Args:
        record: A classified image; its first stage has tried every class.
        classes: Number of classes.

    Returns:
        `(k,)`, larger is likelier.
    """
    trials = np.asarray(record.trials)
    width = int(trials.max()) + 1
    errors = np.full((classes, width), np.nan)
    errors[np.asarray(record.classes), trials] = np.asarray(record.errors, np.float64)
    mean = errors[:, ~np.isnan(errors).any(axis=0)].mean(axis=1)
    return mean.mean() - mean


def average_precision(scores: Array, truth: Mask, weights: Array | None = None) -> Array:
    """Average precision of each row: the mean of the precision at each positive, ranked by descending score.

    Equal scores form one threshold, as in scikit-learn.

    Args:
        scores: `(r, n)`.
        truth: `(r, n)`.
        weights: How often each column counts, `(n,)`; once if left out.

    Returns:
        `(r,)`, NaN for a row without positives.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    weight = np.ones_like(ranked) if weights is None else weights[order]
    hit = np.cumsum(np.take_along_axis(truth, order, axis=1) * weight, axis=1)
    seen = np.cumsum(weight, axis=1)
    ends = np.concatenate([ranked[:, 1:] != ranked[:, :-1], np.ones((len(ranked), 1), np.bool_)], axis=1)
    at_end = np.where(ends, hit, 0)
    # Positives since the previous threshold: what a threshold adds to the recall.
    before = np.concatenate([np.zeros((len(ranked), 1)), np.maximum.accumulate(at_end, axis=1)[:, :-1]], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hit / seen, 0)
        result: Array = (np.where(ends, hit - before, 0) * precision).sum(axis=1) / hit[:, -1]
    return result


def map_sample(scores: Array, truth: Mask) -> Estimate:
    """Mean over images of the average precision over classes, with its 95 % bootstrap interval.

    Args:
        scores: `(n, k)`.
        truth: `(n, k)`, at least one label per image.
    """
    each = average_precision(scores, truth)
    draws = [float(_multiplicities(len(each), i) @ each) / len(each) for i in range(_RESAMPLES)]
    return _estimate(float(each.mean()), draws, len(each))


def map_macro(scores: Array, truth: Mask) -> Estimate:
    """Mean over classes of the average precision over images, with its 95 % bootstrap interval over images.

    Classes that no image has are left out.

    Args:
        scores: `(n, k)`, comparable across images.
        truth: `(n, k)`.
    """
    present = truth.any(axis=0)
    by_class, has = scores[:, present].T.copy(), truth[:, present].T.copy()
    value = float(average_precision(by_class, has).mean())
    n = len(scores)
    draws = [float(np.nanmean(average_precision(by_class, has, _multiplicities(n, i)))) for i in range(_RESAMPLES)]
    return _estimate(value, draws, n)


def _multiplicities(n: int, draw: int) -> Array:
    """How often each of n images is drawn in one bootstrap sample; a function of (n, draw) alone."""
    return np.bincount(np.random.default_rng(draw).integers(0, n, n), minlength=n).astype(np.float64)


def _estimate(value: float, draws: Sequence[float], n: int) -> Estimate:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)
