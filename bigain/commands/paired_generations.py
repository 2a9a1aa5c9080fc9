"""The metrics of two generations on the same images, for `bigain compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bigain.errors import InputError
from bigain.metrics import ShapeFeatures
from bigain.metrics.base import ImageMetric, jackknife_error
from bigain.metrics.fidelity import Psnr
from bigain.metrics.frechet import frechet_leave_one_out
from bigain.metrics.kernel import kernel_leave_one_out
from bigain.metrics.lpips import Lpips
from bigain.metrics.reference import Array, ReferenceStatistics
from bigain.report.generations import Measure, PairedMetric
from bigain.report.statistics import ENOUGH, Paired
from bigain.runs.logs import read_records
from bigain.runs.records import SampleRecord
from bigain.runs.results import Run, read_generation
from bigain.tasks.measuring import find_reference
from bigain.tasks.scoring import measured_images

# Features of a GPU and of a CPU differ in the last digits.
_TOLERANCE = 1e-3

_Distances: TypeAlias = tuple[dict[str, tuple[float, Array]], npt.NDArray[np.bool_] | None]


def measuring() -> Measure:
    """Return the function that measures a run and a base run; it computes the distances of the base once."""
    return partial(_paired_metrics, lru_cache(2)(_distances))


def _paired_metrics(
    distances: Callable[[Path, tuple[str, ...]], _Distances], run: Run, base: Run, ids: Sequence[str]
) -> tuple[list[PairedMetric], list[str]]:
    """Measure two generations on the images that both have.

    Frechet distance and KID, with the joint jackknife error of their difference: every image is left out of both
    runs at once; agreement by discordant images; PSNR and LPIPS, if `bigain score --against` measured both runs against
    one other run.

    Args:
        distances: `_distances`, with a memory.
        run: The run.
        base: The run it is compared with.
        ids: Of the images.

    Returns:
        The metrics, and why others are missing.

    Raises:
        InputError: If there is nothing to compare.
    """
    if len(ids) < ENOUGH:
        raise InputError(f"{run.path} and {base.path} have {len(ids)} images in common; a comparison takes {ENOUGH}")
    metrics, missing = [], []
    try:
        (mine, right), (theirs, base_right) = (distances(one.path, tuple(ids)) for one in (run, base))
        for name in mine.keys() & theirs.keys():
            (value, without), (base_value, base_without) = mine[name], theirs[name]
            error = jackknife_error(without - base_without)
            metrics.append(PairedMetric(name, "", "lower", value, base_value, error, len(ids)))
        if right is not None and base_right is not None:
            name, counts = f"agreement[{ShapeFeatures.protocol}]", Paired.of(right, base_right)
            values = float(right.mean()), float(base_right.mean())
            metrics.append(PairedMetric(name, "%", "higher", *values, 0.0, len(ids), counts))
    except InputError as error:
        missing.append(str(error))
    try:
        metrics += _fidelity(run, base, ids)
    except InputError as error:
        missing.append(str(error))
    if not metrics:
        raise InputError("; ".join(missing))
    return sorted(metrics, key=lambda metric: metric.name), missing


def _distances(run: Path, ids: tuple[str, ...]) -> _Distances:
    """Return each distance with its values without each image, and whether images have the class they were made for."""
    results = read_generation(run)
    protocol, file = results["protocol"]["extractor"], results["protocol"].get("reference_file")
    log = read_records(run / "predictions", SampleRecord)
    records = [log[image_id] for image_id in ids]
    if protocol is None or file is None or any(record.features is None for record in records):
        raise InputError(f"{run} has no features in its log, or no reference; distances are compared where both are")
    features = np.asarray([record.features for record in records], np.float32)
    reference = ReferenceStatistics.load(find_reference(file), protocol, features.shape[1])
    name, frechet = f"frechet[{protocol}]", frechet_leave_one_out(features, reference.moments)
    stored = results["metrics"].get(name, {"value": np.nan})["value"]
    # `not <=` is also true of NaN.
    if len(ids) == results["dataset"]["images"] and not abs(frechet[0] - stored) <= _TOLERANCE * max(1.0, stored):
        raise InputError(
            f"the features in the log of {run} and the reference {file} give {name} {frechet[0]:.4g}, results.json has "
            f"{stored:.4g}; run the command that made {run} again"
        )
    distances = {name: frechet}
    if reference.features is not None:
        distances[f"kid[{protocol}]"] = kernel_leave_one_out(features, reference.features)[:2]
    if f"agreement[{ShapeFeatures.protocol}]" not in results["metrics"] or protocol != ShapeFeatures.protocol:
        return distances, None
    extractor = ShapeFeatures()
    extractor.load()
    classes = extractor.classes_of(torch.from_numpy(features)).numpy()
    return distances, classes == [record.labels[0] for record in records]


def _fidelity(run: Run, base: Run, ids: Sequence[str]) -> list[PairedMetric]:
    """Return metrics of both runs against the run that both were scored against; none without such a run."""
    against = [one.results.get("fidelity_to") for one in (run, base)]
    if not all(against) or len({to["fingerprint"] or to["run"] for to in against if to}) > 1:
        return []
    networks: list[ImageMetric] = [Lpips("alex"), Lpips("vgg"), Lpips("squeeze")]
    chosen = [metric for metric in [Psnr(), *networks] if all(metric.label in one.metrics for one in (run, base))]
    result = []
    for metric in chosen:
        columns = []
        for one, to in zip((run, base), against, strict=True):
            assert to is not None
            records = measured_images(one.path, [metric], other=Path(to["run"]))
            values = {record.image_id: record.measured[metric.name] for record in records}
            columns.append([values.get(image_id, np.nan) for image_id in ids])
        # Of equal images there is no ratio of signal to noise.
        mine, theirs = np.array(columns)[:, np.isfinite(columns).all(axis=0)]
        if (n := len(mine)) >= ENOUGH:
            error = float((mine - theirs).std(ddof=1) / n**0.5)
            means = float(mine.mean()), float(theirs.mean())
            result.append(PairedMetric(metric.label, metric.unit, metric.better or "higher", *means, error, n))
    return result
