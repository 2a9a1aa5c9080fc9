"""The metrics of two generations on the same images, for `bigain compare` and `bigain report`."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from bigain.errors import InputError
from bigain.metrics import ShapeFeatures
from bigain.metrics.base import ImageMetric, jackknife_error
from bigain.metrics.fidelity import Lpips, Psnr, Ssim
from bigain.metrics.frechet import frechet_leave_one_out
from bigain.metrics.kernel import KernelDistance
from bigain.metrics.reference import Array, ReferenceStatistics
from bigain.report.comparison import Measure, PairedMetric
from bigain.report.pairing import Correct, Ids
from bigain.report.statistics import ENOUGH
from bigain.runs.files import find_reference
from bigain.runs.logs import finished_images, read_records
from bigain.runs.records import SampleRecord
from bigain.runs.results import Run, read_ids
from bigain.tasks.scoring import distances as metrics_of
from bigain.tasks.scoring import measured_images

_Distances: TypeAlias = tuple[Array, dict[str, tuple[float, Array]], Correct | None]


def _ids(run: Run) -> Ids:
    return np.array(sorted({*read_ids(run.path)} & finished_images(run.path / "predictions").keys()), np.str_)


def _paired_metrics(run: Run, base: Run, ids: Ids) -> tuple[list[PairedMetric], list[InputError]]:
    """Measure two generations on the images that both have: distances, agreement, and means over images."""
    if len(ids) < ENOUGH:
        raise InputError(f"{run.path} and {base.path} have {len(ids)} images in common; a comparison takes {ENOUGH}")
    metrics: list[PairedMetric] = []
    missing: list[InputError] = []
    for measure in (_distances, _fidelity, _logged):
        try:
            metrics += measure(run, base, tuple(ids.tolist()))
        except InputError as error:
            missing.append(error)
    return sorted(metrics, key=lambda metric: metric.name), missing


GENERATIONS = Measure(_ids, _paired_metrics)


def _distances(run: Run, base: Run, ids: tuple[str, ...]) -> list[PairedMetric]:
    """Return distances with the joint jackknife error: every image is left out of both runs at once; and agreement."""
    measured = [_leave_one_out(measured_run, ids) for measured_run in (run, base)]
    (mean, distances, correct), (base_mean, base_distances, base_correct) = measured
    if not np.array_equal(mean, base_mean):
        raise InputError(f"{run.path} and {base.path} have different references; `bigain score` them with one")
    metrics = []
    for name in distances.keys() & base_distances.keys():
        (value, replicates), (base_value, base_replicates) = distances[name], base_distances[name]
        error = jackknife_error(replicates - base_replicates)
        metrics.append(PairedMetric(name, "", "lower", value, base_value, len(ids), error))
    if correct is not None and base_correct is not None:
        metrics.append(PairedMetric.share(f"agreement[{ShapeFeatures.protocol}]", correct, base_correct))
    return metrics


# For the base run and the run that is compared with it.
@lru_cache(maxsize=2)
def _leave_one_out(run: Run, ids: tuple[str, ...]) -> _Distances:
    """Return the reference's mean, distances with leave-one-out values, and whether images have their item's class."""
    protocol, file = run.results["protocol"]["extractor"], run.results["protocol"].get("reference_file")
    log = read_records(run.path / "predictions", SampleRecord)
    records = [log[image_id] for image_id in ids]
    if protocol is None or file is None or any(record.features is None for record in records):
        raise InputError(
            f"{run.path} has no features in its log, or no reference; distances are compared where both are"
        )
    features = np.asarray([record.features for record in records], np.float32)
    reference = ReferenceStatistics.load(find_reference(file), protocol, features.shape[1])
    distances = {f"frechet[{protocol}]": frechet_leave_one_out(features, reference.moments)}
    for metric in metrics_of(reference):
        if isinstance(metric, KernelDistance) and reference.features is not None:
            distances[metric.label(metric.key)] = metric.leave_one_out(features, reference.features)
    if f"agreement[{ShapeFeatures.protocol}]" not in run.metrics or protocol != ShapeFeatures.protocol:
        return reference.moments.mean, distances, None
    extractor = ShapeFeatures()
    extractor.load()
    classes = extractor.classes_of(torch.from_numpy(features)).numpy()
    return reference.moments.mean, distances, classes == [record.labels[0] for record in records]


def _fidelity(run: Run, base: Run, ids: tuple[str, ...]) -> list[PairedMetric]:
    """Return metrics of both runs against the run that both were scored against; none without such a run."""
    targets = [measured_run.results.get("fidelity_to") for measured_run in (run, base)]
    if len({target and (target["fingerprint"] or target["run"]) for target in targets}) > 1:
        return []
    metrics: list[ImageMetric] = [Psnr(), Ssim(), Lpips("alex"), Lpips("vgg"), Lpips("squeeze")]
    result = []
    for metric in metrics:
        logs = []
        for measured_run, target in zip((run, base), targets, strict=True):
            if target and metric.label in measured_run.metrics:
                records = measured_images(measured_run.path, [metric], other=Path(target["run"]))
                logs.append({record.image_id: record for record in records})
        result += _mean(run, metric.label, logs, ids) if len(logs) == 2 else []
    return result


def _logged(run: Run, base: Run, ids: tuple[str, ...]) -> list[PairedMetric]:
    """Return metrics of single images whose values both logs hold, such as a CLIP score."""
    logs = [read_records(measured_run.path / "predictions", SampleRecord) for measured_run in (run, base)]
    names = Counter(label.partition("[")[0] for label in (*run.metrics, *base.metrics))
    # A log holds one model's values; `bigain score` may have added the means of others.
    labels = [label for label in run.metrics if label in base.metrics and names[label.partition("[")[0]] == 2]
    return [metric for label in labels for metric in _mean(run, label, logs, ids)]


def _mean(run: Run, label: str, logs: list[dict[str, SampleRecord]], ids: tuple[str, ...]) -> list[PairedMetric]:
    """Return a metric over the images with finite values in both logs; none if there are few."""
    name, unit, better = label.partition("[")[0], run.metrics[label]["unit"], run.metrics[label]["better"] or "higher"
    columns = np.array([[log[i].measured.get(name, np.nan) if i in log else np.nan for i in ids] for log in logs])
    # Equal images have an infinite PSNR.
    columns = columns[:, np.isfinite(columns).all(axis=0)] * (100 if unit == "%" else 1)
    if (n := columns.shape[1]) < ENOUGH:
        return []
    (value, base_value), error = columns.mean(axis=1).tolist(), float(np.diff(columns, axis=0).std(ddof=1) / n**0.5)
    return [PairedMetric(label, "points" if unit == "%" else unit, better, value, base_value, n, error)]
