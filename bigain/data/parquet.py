"""Hugging Face image datasets on disk: parquet files with an `image` and a `label` column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigain.data.folders import stem_of
from bigain.errors import InputError

_TEXT = (pa.string(), pa.large_string())
# Raised by pyarrow for damage: in the file, in a text, in columns of unequal length.
_DAMAGED = (OSError, pa.ArrowException, UnicodeDecodeError, LookupError)
# The class that Hugging Face appends to the official names.
_CLASS = re.compile(r"_(n\d{8})\.\w+$")


@dataclass(frozen=True)
class ParquetRow:
    """An image in a parquet file, used like the path of an image file; its position is file, row group and row."""

    position: tuple[Path, int, int]
    image_id: str
    label: str

    def __str__(self) -> str:
        file, group, row = self.position
        return f"{file}, row group {group}, row {row} ({self.image_id})"

    def read_bytes(self) -> bytes:
        """Return the encoded image; raise an InputError if it cannot be read."""
        file, group, row = self.position
        try:
            image = _read_images(file, group)[row].as_py()
        except _DAMAGED as error:
            raise InputError(f"{self} cannot be read ({error}); download the file again") from error
        content: bytes | None = image["bytes"] if image else None
        if content is None:
            raise InputError(f"{self} has no bytes, only a path; save the dataset with its images")
        return content


def read_rows(files: Sequence[Path], classes: Sequence[str]) -> dict[str, ParquetRow]:
    """Read the rows of parquet files by image id, in file order, but no image; `classes` are those of the labels.

    Raises:
        InputError: If a file is damaged, has different columns, labels outside `classes` or an image of another file.
    """
    rows: dict[str, ParquetRow] = {}
    for file in files:
        for row in _rows(file, classes):
            other = rows.setdefault(row.image_id, row)
            if other is not row:
                raise InputError(f"{file} and {other.position[0]} both hold image {row.image_id}; remove one")
    return rows


@lru_cache(maxsize=1)
def _read_images(file: Path, group: int) -> Any:
    # Neighbouring images share a row group, which can only be read whole.
    return _open(file).read_row_group(group, columns=["image"])["image"]


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} is not a readable parquet file ({error}); download it again") from error


def _rows(file: Path, classes: Sequence[str]) -> Iterator[ParquetRow]:
    parquet = _open(file)
    _check_schema(file, parquet.schema_arrow, len(classes))
    for group in range(parquet.num_row_groups):
        try:
            columns = parquet.read_row_group(group, columns=["label", "image.path"])
            pairs = list(zip(columns["label"].to_pylist(), columns["image"].to_pylist(), strict=True))
        except (*_DAMAGED, ValueError) as error:
            raise InputError(f"{file}, row group {group} cannot be read ({error}); download the file again") from error
        for row, (label, image) in enumerate(pairs):
            name = image["path"] or "" if image else ""
            if label is None or not 0 <= label < len(classes):
                raise InputError(f"{file}, row group {group}, row {row}: label {label}, not in 0..{len(classes) - 1}")
            named = _CLASS.search(name)
            if named and named[1] != classes[label]:
                raise InputError(
                    f"{file}, row group {group}, row {row}: {name} has the label {label}, which is {classes[label]} in "
                    "wnid order; expected the labels of Hugging Face's imagenet-1k"
                )
            image_id = stem_of(name) if name else f"{file.stem}/{group:05d}/{row:05d}"
            yield ParquetRow((file, group, row), image_id, classes[label])


def _check_schema(file: Path, schema: Any, classes: int) -> None:
    kinds = {field.name: field.type for field in schema}
    image, label = kinds.get("image", pa.null()), kinds.get("label", pa.null())
    parts = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    is_image = parts.get("bytes") in (pa.binary(), pa.large_binary()) and parts.get("path") in _TEXT
    if not is_image or not pa.types.is_integer(label):
        columns = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise InputError(f"{file} has the columns {columns}; expected image (bytes, path) and label (an integer)")
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (ValueError, LookupError, TypeError):
        return
    if isinstance(names, list) and len(names) != classes:
        raise InputError(f"{file} has labels of {len(names)} classes; expected ImageNet-1K's {classes}, in wnid order")
