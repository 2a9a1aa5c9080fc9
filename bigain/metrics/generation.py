"""Metrics of a set of generated images: distances to real ones, and fidelity to another model's samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bigain.data.class_space import ClassSpace
from bigain.data.images import read_images
from bigain.errors import InputError
from bigain.metrics.accuracy import Z95, accuracies
from bigain.metrics.distances import Moments, frechet_distance, frechet_interval, kernel_distance, precision_recall
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.fidelity import Lpips, psnr, ssim
from bigain.metrics.reference import ReferenceStatistics
from bigain.runs.schema import Estimate

# The bootstrap of a Frechet distance takes minutes beyond this many dimensions.
_INTERVAL_DIMENSIONS = 256
# Precision and recall compare every pair.
_NEIGHBOURS = 10_000
_PAIRS_AT_ONCE = 16
# Fewer images are no set to speak of.
LEAST_IMAGES = 4

Features = npt.NDArray[np.float32]


def distance_metrics(features: Features, reference: ReferenceStatistics) -> dict[str, dict[str, Any]]:
    """Distances of generated images to a reference, named with their protocol.

    Args:
        features: Of generated images. `(n, d)`.
        reference: Of the real ones, under the same protocol.

    Returns:
        Estimates by name: `frechet[protocol]`, with an interval where it takes seconds; and where the reference holds
        features, `kernel[protocol]`, `precision[protocol]`, `recall[protocol]`.

    Raises:
        InputError: If there are too few images.
    """
    n, protocol = len(features), reference.protocol
    if n < LEAST_IMAGES:
        raise InputError(f"{n} images are too few for a distance; it takes {LEAST_IMAGES} at least")
    metrics: dict[str, dict[str, Any]] = {}
    if features.shape[1] <= _INTERVAL_DIMENSIONS:
        metrics[f"frechet[{protocol}]"] = {**frechet_interval(features, reference.moments)}
    else:
        distance = frechet_distance(Moments.of([features]), reference.moments)
        metrics[f"frechet[{protocol}]"] = {"value": distance, "low": None, "high": None, "n": n}
    if reference.features is None:
        return metrics
    mean, error = kernel_distance(features, reference.features)
    metrics[f"kernel[{protocol}]"] = {**_around(mean, error, n), "standard_error": error}
    precision, recall = precision_recall(reference.features[:_NEIGHBOURS], features[:_NEIGHBOURS])
    for name, value in (("precision", precision), ("recall", recall)):
        metrics[f"{name}[{protocol}]"] = {"value": value, "low": None, "high": None, "n": min(n, _NEIGHBOURS)}
    return metrics


def agreement_metrics(
    extractor: FeatureExtractor, features: Features, labels: Sequence[Sequence[int]], space: ClassSpace
) -> dict[str, dict[str, Any]]:
    """How many images show the class that was asked for, as the extractor's own classifier sees them.

    Args:
        extractor: Loaded.
        features: Of generated images, on no device. `(n, d)`.
        labels: Classes that were asked for, of each image.
        space: What the labels are of.

    Returns:
        `agreement[protocol]`, and `agreement_<factor>[protocol]` for each of the coarser labels, with 95 % Wilson
        intervals; nothing if the extractor does not tell exactly these classes apart, or an image has several.
    """
    if tuple(extractor.class_names) != tuple(space.names) or any(len(asked) != 1 for asked in labels):
        return {}
    device = next(extractor.parameters()).device
    found = extractor.classes_of(torch.from_numpy(features).to(device)).tolist()
    shares = accuracies([asked[0] for asked in labels], found, space.factors)
    names = {"top1": "agreement", **{factor: f"agreement_{factor}" for factor in space.factors}}
    return {f"{names[name]}[{extractor.protocol}]": {**share} for name, share in shares.items()}


def clip_metrics(scores: Sequence[float], model: str) -> dict[str, dict[str, Any]]:
    """The mean CLIP score, named with its model, for other models give other numbers.

    Args:
        scores: One per image.
        model: Folder of the CLIP model.

    Returns:
        `clip_score[name of the folder]` with its 95 % interval.
    """
    return {f"clip_score[{Path(model).name}]": _mean(scores)}


def fidelity_metrics(pairs: Sequence[tuple[Path, Path]], lpips: Lpips | None = None) -> dict[str, dict[str, Any]]:
    """How near images are to those of another model at the same seed, e.g. the uncompressed one.

    Args:
        pairs: Files of the same item.
        lpips: Loaded or not, its weights being there; None leaves it out.

    Returns:
        `psnr` in dB, of images that differ, `ssim` and `lpips[network]`, means over images with 95 % intervals.
    """
    noise, structure, perceived = [], [], []
    for part in _batches(pairs):
        a, b = (read_images([pair[side] for pair in part]) for side in (0, 1))
        if a.shape != b.shape:
            raise InputError(f"{part[0][0]} and {part[0][1]} differ in size; compare runs of one image_size")
        noise += psnr(a, b).tolist()
        structure += ssim(a, b).tolist()
        perceived += lpips(a, b).tolist() if lpips is not None else []
    finite = [value for value in noise if math.isfinite(value)]
    named = {"psnr": finite, "ssim": structure, f"lpips[{lpips.network if lpips else ''}]": perceived}
    return {name: _mean(values) for name, values in named.items() if values}


def _batches(pairs: Sequence[tuple[Path, Path]]) -> Iterator[Sequence[tuple[Path, Path]]]:
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        yield pairs[start : start + _PAIRS_AT_ONCE]


def _mean(values: Sequence[float]) -> dict[str, Any]:
    column = torch.tensor(values, dtype=torch.float64)
    error = float(column.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {**_around(float(column.mean()), error, len(values))}


def _around(value: float, error: float, n: int) -> Estimate:
    return Estimate(value=value, low=value - Z95 * error, high=value + Z95 * error, n=n)
