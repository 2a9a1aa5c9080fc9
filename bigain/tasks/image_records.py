"""From an elimination to the records of its images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from bigain.diffusion.elimination import Elimination
from bigain.runs.records import ImageRecord


class NotFinite(NamedTuple):
    """An error that is infinite or NaN, with its class and trial."""

    label: int
    trial: int
    error: float


def image_records(
    ids: Sequence[str], labels: Sequence[int | list[int]], result: Elimination, timesteps: Tensor, start: float
) -> list[ImageRecord]:
    """Return the records of a batch. Its results are copied from the device here, once.

    Args:
        ids: b image ids.
        labels: True class of each image, or all its classes in a multi-label dataset.
        result: The elimination of these images.
        timesteps: Timestep of every trial. `(b, t)`, int64.
        start: Start of the batch, by `time.perf_counter`.
    """
    errors = result.errors.cpu()
    survivors = [stage.tolist() for stage in result.survivors]
    predictions = result.prediction.tolist()
    seconds = (time.perf_counter() - start) / len(ids)
    records = []
    for i, image_id in enumerate(ids):
        classes, trials = (~errors[i].isnan()).nonzero(as_tuple=True)
        records.append(
            ImageRecord(
                image_id=image_id,
                label=labels[i],
                prediction=predictions[i],
                classes=classes.tolist(),
                trials=trials.tolist(),
                timesteps=timesteps[i, trials].tolist(),
                errors=errors[i, classes, trials].tolist(),
                survivors=[alive for stage in survivors if (alive := [label for label in stage[i] if label >= 0])],
                seconds=seconds,
            )
        )
    return records


def not_finite(record: ImageRecord, stages: Sequence[Sequence[int]], classes: int) -> NotFinite | None:
    """Return the first error of an image that is infinite or NaN; None if there is none.

    Args:
        record: The image. A pair that should have been evaluated and is missing had a NaN.
        stages: New trials of each stage; an image may be done before the last.
        classes: Number of classes.
    """
    errors = dict(zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True))
    alive: Sequence[int] = range(classes)
    for trials, survivors in zip(stages, record.survivors, strict=False):
        for pair in ((label, trial) for trial in trials for label in alive):
            error = errors.get(pair, math.nan)
            if not math.isfinite(error):
                return NotFinite(*pair, error)
        alive = survivors
    return None
