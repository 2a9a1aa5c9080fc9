"""Hugging Face image datasets on disk: parquet files with an `image` and a `label` column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
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


class ParquetImages:
    """Images of parquet files; opening reads the labels and the file names, never an image.

    Attributes:
        labels: Class of every image by id, in file order.
    """

    def __init__(self, files: Sequence[Path], classes: Sequence[str]) -> None:
        """Read the labels.

        Args:
            files: Parquet files in order.
            classes: Class of each label.

        Raises:
            InputError: If a file is damaged, has different columns, or labels outside `classes`.
        """
        self.labels: dict[str, str] = {}
        self._files = list(files)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._open: tuple[tuple[int, int], Any] | None = None
        for number, file in enumerate(files):
            for group, row, image_id, label in _rows(file, classes):
                if image_id in self.labels:
                    other = files[self._places[image_id][0]]
                    raise InputError(f"{file} and {other} both hold image {image_id}; remove one")
                self.labels[image_id], self._places[image_id] = label, (number, group, row)

    def position(self, image_id: str) -> tuple[int, int, int]:
        """Return the file, row group and row of an image, as numbers from 0."""
        return self._places[image_id]

    def read(self, image_id: str) -> bytes:
        """Return an encoded image.

        Raises:
            InputError: If it cannot be read.
        """
        number, group, row = self._places[image_id]
        try:
            # Neighbouring images share a row group, which can only be read whole.
            if self._open is None or self._open[0] != (number, group):
                self._open = (number, group), _open(self._files[number]).read_row_group(group, columns=["image"])
            image = self._open[1]["image"][row].as_py()
        except _DAMAGED as error:
            raise InputError(f"{self.where(image_id)} cannot be read ({error}); download the file again") from error
        content: bytes | None = image["bytes"] if image else None
        if content is None:
            raise InputError(f"{self.where(image_id)} has no bytes, only a path; save the dataset with its images")
        return content

    def where(self, image_id: str) -> str:
        """Return the location of an image, for messages."""
        number, group, row = self._places[image_id]
        return f"{self._files[number]}, row group {group}, row {row} ({image_id})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} is not a readable parquet file ({error}); download it again") from error


def _rows(file: Path, classes: Sequence[str]) -> Iterator[tuple[int, int, str, str]]:
    """Yield (row group, row, image id, class) of every image of a file."""
    parquet = _open(file)
    _check_schema(file, parquet.schema_arrow, len(classes))
    for group in range(parquet.num_row_groups):
        try:
            columns = parquet.read_row_group(group, columns=["label", "image.path"])
            rows = list(zip(columns["label"].to_pylist(), columns["image"].to_pylist(), strict=True))
        except (*_DAMAGED, ValueError) as error:
            raise InputError(f"{file}, row group {group} cannot be read ({error}); download the file again") from error
        for row, (label, image) in enumerate(rows):
            name = image["path"] or "" if image else ""
            if label is None or not 0 <= label < len(classes):
                raise InputError(f"{file}, row group {group}, row {row}: label {label}, not in 0..{len(classes) - 1}")
            named = _CLASS.search(name)
            if named and named[1] != classes[label]:
                raise InputError(
                    f"{file}, row group {group}, row {row}: {name} has the label {label}, which is {classes[label]} in "
                    "wnid order; expected the labels of Hugging Face's imagenet-1k"
                )
            yield group, row, stem_of(name) if name else f"{file.stem}/{group:05d}/{row:05d}", classes[label]


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
