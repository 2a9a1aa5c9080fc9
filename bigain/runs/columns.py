"""All classified images of a run as arrays, in `predictions.npz`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.runs.files import replacing
from bigain.runs.records import ImageRecord

Array = npt.NDArray[Any]

_COLUMNS = Path("predictions", "predictions.npz")
# Numbers that are in memory at a time.
_BLOCK = 2**22
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Most characters that are shown of an error: numpy's contain the whole header of an array.
_LONGEST = 160


class Header(NamedTuple):
    """Shape and type of an array in an archive."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_headers(path: Path, names: Sequence[str]) -> dict[str, Header]:
    """Read shape and type of the named arrays in an `.npz` archive, without those that it lacks.

    Raises:
        ValueError: If they cannot be read, or a header does not fit the size of its array.
    """
    headers = {}
    # A damaged archive or header raises almost anything, such as a TypeError, zlib.error or tokenize.TokenError.
    try:
        with ZipFile(path) as archive:
            for name in names:
                if f"{name}.npy" not in archive.NameToInfo:
                    continue
                with archive.open(f"{name}.npy") as member:
                    version = np.lib.format.read_magic(member)
                    if version not in _HEADERS:
                        raise ValueError(f"{name} has format {version}")
                    shape, _, dtype = _HEADERS[version](member)
                    size = archive.getinfo(f"{name}.npy").file_size - member.tell()
                    if dtype.hasobject or size != math.prod(shape) * dtype.itemsize:
                        raise ValueError(f"{name} has {size} bytes, its header says {dtype} {shape}")
                headers[name] = Header(shape, dtype)
    except Exception as error:
        raise ValueError(_reason(error)) from error
    return headers


def read_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, Array]:
    """Load arrays from an `.npz` archive, without pickles.

    Args:
        path: The archive.
        names: Of the arrays; none for all of them.

    Raises:
        ValueError: If it cannot be read or lacks one of them.
    """
    try:
        # numpy would leave a file open that is not an archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            # A lone array has no names.
            return {name: archive[name] for name in names or getattr(archive, "files", ())}
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def read_columns(run: Path, *names: str) -> list[Array]:
    """Load columns of `predictions.npz`: see `write_columns`.

    Args:
        run: Directory of a classification.
        names: Of the columns; others are not read.

    Raises:
        InputError: If the file is missing or damaged.
    """
    file = run / _COLUMNS
    if not file.is_file():
        raise InputError(f"{file} does not exist; run the command that made {run} again")
    try:
        return [*read_arrays(file, names).values()]
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); run the command that made {run} again") from error


def column_blocks(run: Path, name: str) -> Iterator[Array]:
    """Yield rows of a column of `predictions.npz`, in order, about 4 million numbers at a time.

    Raises:
        InputError: If the file is missing or damaged.
    """
    file = run / _COLUMNS
    try:
        with ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            np.lib.format.read_magic(member)
            (n, *row), _, kind = np.lib.format.read_array_header_1_0(member)
            step = max(1, _BLOCK // math.prod(row))
            for start in range(0, n, step):
                shape = (min(step, n - start), *row)
                yield np.frombuffer(member.read(math.prod(shape) * kind.itemsize), kind).reshape(shape)
    except Exception as error:
        raise InputError(f"{file} is damaged ({_reason(error)}); run the command that made {run} again") from error


def write_columns(run: Path, records: Sequence[ImageRecord], classes: int) -> None:
    """Write `predictions/predictions.npz`, an archive of arrays that `numpy.load` reads.

    `image_id`, `label`, `prediction`, `seconds` of shape `(n,)`, in a multi-label dataset `label` `(n, k)` bool;
    `errors` `(n, k, t)` float32, NaN where a pair was not evaluated; `timesteps` `(n, t)` int16, -1 where no class was
    tried; `stage` `(n, k)` int16: stages, or looks of a race, that each class survived.

    Errors are written image by image: together they take 20 GB for 50,000 images of ImageNet-1K.

    Args:
        run: Run directory with a folder `predictions`.
        records: n records.
        classes: k, the number of classes.
    """
    n, trials = len(records), max((record.width for record in records), default=1)
    timesteps, stage = np.full((n, trials), -1, np.int16), np.zeros((n, classes), np.int16)
    with replacing(run / _COLUMNS) as opened, ZipFile(opened, "w", ZIP_DEFLATED) as archive:
        with archive.open("errors.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n, classes, trials)}
            np.lib.format.write_array_header_1_0(file, header)
            # Each record is read from the log once.
            for i, record in enumerate(records):
                tried = np.asarray(record.trials, np.intp)
                errors = np.full((classes, trials), math.nan, "<f4")
                errors[np.asarray(record.classes, np.intp), tried] = record.errors
                file.write(errors.tobytes())
                timesteps[i, tried] = record.timesteps
                for alive in record.survivors:
                    stage[i, alive] += 1
        columns = {
            "image_id": np.array([record.image_id for record in records], dtype=np.str_),
            "label": _labels(records, classes),
            "prediction": np.array([record.prediction for record in records], np.int64),
            "seconds": np.array([record.seconds for record in records], np.float64),
            "timesteps": timesteps,
            "stage": stage,
        }
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)


def _labels(records: Sequence[ImageRecord], classes: int) -> Array:
    if all(isinstance(record.label, int) for record in records):
        return np.array([record.label for record in records], np.int64)
    labels = np.zeros((len(records), classes), np.bool_)
    for row, record in zip(labels, records, strict=True):
        row[list(record.labels)] = True
    return labels
