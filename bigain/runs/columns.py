"""All classified images of a run as arrays, in `predictions.npz`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import numpy.typing as npt

from bigain.runs.records import ImageRecord

Array = npt.NDArray[Any]


def write_columns(path: Path, records: Sequence[ImageRecord], classes: int) -> None:
    """Write `predictions.npz`, an archive of arrays that `numpy.load` reads.

    `image_id`, `label`, `prediction`, `seconds` of shape `(n,)`, in a multi-label dataset `label` `(n, k)` bool;
    `errors` `(n, k, t)` float32, NaN where a pair was not evaluated; `timesteps` `(n, t)` int16, -1 where no class was
    tried; `stage` `(n, k)` int16: stages, or looks of a race, that each class survived.

    Errors go to the file image by image: together they take 20 GB for 50,000 images of ImageNet-1K.

    Args:
        path: Is overwritten.
        records: n of them.
        classes: k, how many classes there are.
    """
    trials = 1 + max((max(record.trials, default=0) for record in records), default=0)
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, column in _columns(records, classes, trials).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)
        with archive.open("errors.npy", "w", force_zip64=True) as file:
            shape = (len(records), classes, trials)
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for errors in _errors(records, classes, trials):
                file.write(errors.tobytes())


def _errors(records: Sequence[ImageRecord], classes: int, trials: int) -> Iterator[Array]:
    for record in records:
        errors = np.full((classes, trials), math.nan, "<f4")
        errors[np.asarray(record.classes, np.intp), np.asarray(record.trials, np.intp)] = record.errors
        yield errors


def _columns(records: Sequence[ImageRecord], classes: int, trials: int) -> dict[str, Array]:
    """All but the errors."""
    n = len(records)
    timesteps = np.full((n, trials), -1, np.int16)
    stage = np.zeros((n, classes), np.int16)
    for i, record in enumerate(records):
        timesteps[i, np.asarray(record.trials, np.intp)] = record.timesteps
        for alive in record.survivors:
            stage[i, alive] += 1
    return {
        "image_id": np.array([record.image_id for record in records], dtype=np.str_),
        "label": _labels(records, classes),
        "prediction": np.array([record.prediction for record in records], np.int64),
        "seconds": np.array([record.seconds for record in records], np.float64),
        "timesteps": timesteps,
        "stage": stage,
    }


def _labels(records: Sequence[ImageRecord], classes: int) -> Array:
    if all(isinstance(record.label, int) for record in records):
        return np.array([record.label for record in records], np.int64)
    labels = np.zeros((len(records), classes), np.bool_)
    for row, record in zip(labels, records, strict=True):
        row[list(record.labels)] = True
    return labels
