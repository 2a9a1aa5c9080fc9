"""All images of a run as arrays, in `predictions.npz` or `features.safetensors`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bigain.errors import InputError
from bigain.runs.files import replacing, write_bytes
from bigain.runs.records import FeatureRecord, ImageRecord

Array = npt.NDArray[Any]

_COLUMNS = Path("predictions", "predictions.npz")
_FEATURES = Path("predictions", "features.safetensors")
# Numbers that are in memory at a time.
_BLOCK = 2**22


def read_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, Array]:
    """Load the named arrays that an `.npz` archive holds, or all, without pickles; other members are not read.

    Raises:
        ValueError: If it cannot be read.
    """
    arrays = {}
    try:
        with ZipFile(path) as archive:
            for name in names or [member.removesuffix(".npy") for member in archive.NameToInfo]:
                if f"{name}.npy" in archive.NameToInfo:
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    # zipfile and numpy raise many kinds of errors for damaged archives and headers.
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:160]) from error
    return arrays


def read_columns(run: Path, *names: str) -> list[Array]:
    """Load columns of a run's `features.safetensors` or `predictions.npz`: see `write_features` and `write_columns`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    file = run / (_FEATURES if (run / _FEATURES).is_file() else _COLUMNS)
    if not file.is_file():
        raise InputError(f"{file} does not exist; run the command that made {run} again")
    try:
        if file.name == _COLUMNS.name:
            arrays = read_arrays(file, names)
            return [arrays[name] for name in names]
        with safe_open(file, "np") as opened:
            ids = np.array(json.loads(opened.metadata()["image_id"]), np.str_)
            return [ids if name == "image_id" else opened.get_tensor(name) for name in names]
    except (OSError, SafetensorError, TypeError, LookupError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}); run the command that made {run} again") from error


def column_blocks(run: Path, name: str) -> Iterator[Array]:
    """Yield rows of a column of `predictions.npz`, in order, about 4 million numbers at a time."""
    with ZipFile(run / _COLUMNS) as archive, archive.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        (n, *row), _, kind = np.lib.format.read_array_header_1_0(member)
        step = max(1, _BLOCK // math.prod(row))
        for start in range(0, n, step):
            shape = (min(step, n - start), *row)
            yield np.frombuffer(member.read(math.prod(shape) * kind.itemsize), kind).reshape(shape)


def write_columns(run: Path, records: Sequence[ImageRecord], classes: int) -> None:
    """Write `predictions/predictions.npz`, an archive of arrays that `numpy.load` reads.

    `image_id`, `label`, `prediction`, `seconds` of shape `(n,)`, in a multi-label dataset `label` `(n, k)` bool;
    `errors` `(n, k, t)` float32, NaN where a pair was not evaluated; `timesteps` `(n, t)` int16, -1 where no class was
    tried; `stage` `(n, k)` int16: stages, or looks of a race, that each class survived; with bands, `bands`
    `(n, k, t, 1 + bands)` float32, the parts of each error.

    Errors are written image by image: together they take 20 GB for 50,000 images of ImageNet-1K.
    """
    n, trials = len(records), max((record.width for record in records), default=1)
    timesteps, stage = np.full((n, trials), -1, np.int16), np.zeros((n, classes), np.int16)
    labels: Array = np.array([record.label for record in records if isinstance(record.label, int)], np.int64)
    if len(labels) < n:
        labels = label_matrix(records, classes)
    with replacing(run / _COLUMNS) as opened, ZipFile(opened, "w", ZIP_DEFLATED) as archive:
        bands_shape = np.shape(records[0].bands)[1:] if records else ()
        for name, shape in {"errors": (), **({"bands": bands_shape} if bands_shape else {})}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (n, classes, trials, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                # Each record is read from the log once per column.
                for i, record in enumerate(records):
                    tried = np.asarray(record.trials, np.intp)
                    values = np.full((classes, trials, *shape), math.nan, "<f4")
                    values[np.asarray(record.classes, np.intp), tried] = getattr(record, name)
                    file.write(values.tobytes())
                    timesteps[i, tried] = record.timesteps
                    stage[i] = 0
                    for alive in record.survivors:
                        stage[i, alive] += 1
        columns = {
            "image_id": np.array([record.image_id for record in records], dtype=np.str_),
            "label": labels,
            "prediction": np.array([record.prediction for record in records], np.int64),
            "seconds": np.array([record.seconds for record in records], np.float64),
            "timesteps": timesteps,
            "stage": stage,
        }
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)


def write_features(run: Path, records: Sequence[FeatureRecord], predictions: Mapping[str, Array]) -> None:
    """Write `predictions/features.safetensors`, a row per image.

    `features/2@100` `(n, d)` and `high_frequency/2@100` `(n,)`, float32, of every site and timestep; `label` `(n,)`,
    -1 where an image has not exactly one; `prediction/knn` and others, `(n,)`. The ids are a JSON list in the metadata,
    `image_id`.
    """
    labels = [record.labels[0] if len(record.labels) == 1 else -1 for record in records]
    columns: dict[str, Array] = {"label": np.array(labels, np.int64)}
    for name in records[0].features:
        columns[f"features/{name}"] = np.array([record.features[name] for record in records], np.float32)
        columns[f"high_frequency/{name}"] = np.array([record.high_frequency[name] for record in records], np.float32)
    columns |= {f"prediction/{name}": column for name, column in predictions.items()}
    ids = json.dumps([record.image_id for record in records])
    write_bytes(run / _FEATURES, save(columns, metadata={"image_id": ids}))


def label_matrix(records: Sequence[ImageRecord], classes: int) -> npt.NDArray[np.bool_]:
    """Return which of k classes each of n images has. `(n, k)`."""
    matrix = np.zeros((len(records), classes), np.bool_)
    for row, record in zip(matrix, records, strict=True):
        row[list(record.labels)] = True
    return matrix
