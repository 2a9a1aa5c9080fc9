"""Metrics of images with several labels: top-1 precision, and mean average precision over classes and over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import Metric, normal_estimate, proportion
from bigain.runs.columns import label_matrix
from bigain.runs.records import ImageRecord
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_DRAWS = 200


class Top1Precision(Metric):
    """`top1_precision`: whether the predicted class is one of the image's.

    Images without a label are left out, except from `top1_precision_all`, which counts them as wrong, as the release
    does, and is reported only if there are such images.
    """

    name = "top1_precision"
    unit = "%"
    better = "higher"

    def estimates(self, records: Sequence[ImageRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        labelled = sum(bool(record.labels) for record in records)
        correct = sum(record.prediction in record.labels for record in records)
        metrics = {"top1_precision": proportion(correct, labelled)} if labelled else {}
        if 0 < labelled < len(records):
            metrics["top1_precision_all"] = proportion(correct, len(records))
        return metrics


class MeanAveragePrecision(Metric):
    """`map_macro`, over images and averaged over classes; `map_sample`, over classes and averaged over images.

    `map_released` is `map_sample` ranked as the release does, see `mixed_scores`; the paper prints it.

    Images without a label are left out, and classes without images from `map_macro`. Its standard error is that of the
    Bayesian bootstrap over images (Rubin, 1981): unlike resampling, which repeats images and loses rare classes, it
    keeps every image.
    """

    name = "mean_average_precision"
    unit = "%"
    better = "higher"

    def estimates(self, records: Sequence[ImageRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        labelled = [record for record in records if record.labels]
        if not labelled:
            return {}
        n, classes = len(labelled), len(space)
        scores = np.stack([shared_scores(record, classes) for record in labelled])
        truth = label_matrix(labelled, classes)
        present = truth.any(axis=0)
        class_precision = average_precision(
            np.ascontiguousarray(scores[:, present].T), np.ascontiguousarray(truth[:, present].T)
        )
        # Weights depend on (n, draw) alone, so the interval is deterministic.
        weights = (np.random.default_rng(draw).exponential(size=n) for draw in range(_DRAWS))
        draws = [float(class_precision(weight).mean()) for weight in weights]
        # One image gives no spread.
        macro_error = float(np.std(draws)) if n > 1 else 1.0
        estimates = {"map_macro": normal_estimate(float(class_precision(np.ones(n)).mean()), macro_error, n, 0.0, 1.0)}
        mixed = np.stack([mixed_scores(record, classes) for record in labelled])
        for name, ranked in (("map_sample", scores), ("map_released", mixed)):
            image_precision = average_precision(ranked, truth)(np.ones(classes))
            error = float(image_precision.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
            estimates[name] = normal_estimate(float(image_precision.mean()), error, n, 0.0, 1.0)
        return estimates


def shared_scores(record: ImageRecord, classes: int) -> Array:
    """Score k classes by how far their errors lie below the mean of the classes, on the trials that all classes share.

    Subtracting the mean makes scores comparable across images, whose errors differ more than those of their classes.
    `(k,)`, larger is more likely.
    """
    errors = np.full((classes, record.width), np.nan)
    errors[np.asarray(record.classes), np.asarray(record.trials)] = np.asarray(record.errors, np.float64)
    mean = errors[:, ~np.isnan(errors).any(axis=0)].mean(axis=1)
    return mean.mean() - mean


def mixed_scores(record: ImageRecord, classes: int) -> Array:
    """Score k classes by minus the mean of all their errors, so that survivors have more trials than other classes.

    Only for the replication of the paper's mAP: a mean of 20 trials and one of 5 do not compare. `(k,)`.
    """
    members = np.asarray(record.classes)
    totals = np.bincount(members, np.asarray(record.errors, np.float64), classes)
    return -totals / np.bincount(members, minlength=classes)


def average_precision(scores: Array, truth: Mask) -> Callable[[Array], Array]:
    """Return a function from column weights `(n,)` to the average precision of each row, `(r,)`.

    That is the mean precision at each positive, ranked by descending score; equal scores form one threshold, as in
    scikit-learn. It is NaN for a row without positives. Rows are sorted once, for any number of weights.

    Args:
        scores: `(r, n)`.
        truth: `(r, n)`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, axis=1), np.take_along_axis(truth, order, axis=1)
    # The last column of each score.
    ends = np.concatenate([ranked[:, 1:] != ranked[:, :-1], np.ones((len(ranked), 1), np.bool_)], axis=1)

    def weighted(weights: Array) -> Array:
        weight = weights[order]
        hit, seen = np.cumsum(weight * hits, axis=1), np.cumsum(weight, axis=1)
        # Positives up to the previous threshold: the difference is what a threshold adds to the recall.
        previous = np.zeros_like(hit)
        np.maximum.accumulate((hit * ends)[:, :-1], axis=1, out=previous[:, 1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, hit / seen, 0)
            result: Array = ((hit - previous) * ends * precision).sum(axis=1) / hit[:, -1]
        return result

    return weighted
