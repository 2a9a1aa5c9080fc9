"""Hugging Face image datasets on disk: parquet files with an `image` and a `label` column."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigain.data.folders import ImageSource, stem_of
from bigain.errors import InputError

_TEXT = (pa.string(), pa.large_string())
# What damage leads to: in the file, in a text that is none, and in columns of unequal length.
_DAMAGED = (OSError, pa.ArrowException, UnicodeDecodeError, LookupError)

# The class that Hugging Face appends to the official names.
_CLASS = re.compile(r"_(n\d{8})\.\w+$")


@dataclass(frozen=True)
class _Row:
    file: Path
    group: int
    row: int
    label: str


class ParquetImages(ImageSource):
    """Images of parquet files; opening reads the label column and the file names, never an image."""

    def __init__(self, files: Sequence[Path], classes: Sequence[str]) -> None:
        """Read the labels.

        Args:
            files: Parquet files in order.
            classes: Class of each label.

        Raises:
            InputError: If a file is damaged, has other columns, or labels outside `classes`.
        """
        self._files = list(files)
        self._rows: dict[str, _Row] = {}
        self._open: tuple[Path, int, Any] | None = None
        for file in files:
            for image_id, row in _rows(file, classes):
                if image_id in self._rows:
                    raise InputError(f"{file} and {self._rows[image_id].file} both hold image {image_id}; remove one")
                self._rows[image_id] = row

    def labels(self) -> dict[str, str]:
        return {image_id: row.label for image_id, row in self._rows.items()}

    def read(self, image_id: str) -> bytes:
        row = self._rows[image_id]
        # Neighbouring images share a row group, which can only be read whole.
        try:
            if self._open is None or self._open[:2] != (row.file, row.group):
                self._open = row.file, row.group, _open(row.file).read_row_group(row.group, columns=["image"])
            image: dict[str, Any] | None = self._open[2]["image"][row.row].as_py()
        except _DAMAGED as error:
            raise InputError(f"{self.where(image_id)} cannot be read ({error}); fetch the file again") from error
        content: bytes | None = image["bytes"] if image else None
        if content is None:
            raise InputError(f"{self.where(image_id)} has no bytes, only a path; save the dataset with its images")
        return content

    def position(self, image_id: str) -> tuple[int, ...]:
        row = self._rows[image_id]
        return self._files.index(row.file), row.group, row.row

    def where(self, image_id: str) -> str:
        row = self._rows[image_id]
        return f"{row.file}, row group {row.group}, row {row.row} ({image_id})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} is not a readable parquet file ({error}); fetch it again") from error


def _rows(file: Path, classes: Sequence[str]) -> list[tuple[str, _Row]]:
    parquet = _open(file)
    _check_schema(file, parquet.schema_arrow, len(classes))
    rows = []
    for group in range(parquet.num_row_groups):
        try:
            columns = parquet.read_row_group(group, columns=["label", "image.path"])
            labels, paths = columns["label"].to_pylist(), columns["image"].to_pylist()
        except _DAMAGED as error:
            raise InputError(f"{file}, row group {group} cannot be read ({error}); fetch the file again") from error
        if len(labels) != len(paths):
            raise InputError(f"{file}, row group {group}: {len(labels)} labels, {len(paths)} images; fetch it again")
        for row, (label, image) in enumerate(zip(labels, paths, strict=True)):
            if label is None or not 0 <= label < len(classes):
                raise InputError(f"{file}, row group {group}, row {row}: label {label}, not in 0..{len(classes) - 1}")
            named = _CLASS.search(image["path"] or "") if image else None
            if named and named[1] != classes[label]:
                raise InputError(
                    f"{file}, row group {group}, row {row}: {image['path']} has the label {label}, which is "
                    f"{classes[label]} in wnid order; expected the labels of Hugging Face's imagenet-1k"
                )
            image_id = stem_of(image["path"]) if image and image["path"] else f"{file.stem}/{group:05d}/{row:05d}"
            rows.append((image_id, _Row(file, group, row, classes[label])))
    return rows


def _check_schema(file: Path, schema: Any, classes: int) -> None:
    columns = schema.names
    if "label" not in columns or "image" not in columns:
        raise InputError(f"{file} has the columns {', '.join(columns)}; expected image (bytes, path) and label")
    kind = schema.field("image").type
    parts = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if parts.get("bytes") not in (pa.binary(), pa.large_binary()) or parts.get("path") not in _TEXT:
        raise InputError(f"{file}: the image column is {kind}; expected a struct of bytes (binary) and path (string)")
    if not pa.types.is_integer(schema.field("label").type):
        raise InputError(f"{file}: the label column is {schema.field('label').type}; expected integers")
    names = _label_names((schema.metadata or {}).get(b"huggingface", b"{}"))
    if names is not None and len(names) != classes:
        raise InputError(
            f"{file} has labels of {len(names)} classes of its own; expected ImageNet-1K's {classes}, in wnid order"
        )


def _label_names(description: bytes) -> list[str] | None:
    """Names of the labels in a dataset's description, if it has any."""
    try:
        names = json.loads(description)["info"]["features"]["label"]["names"]
    except (ValueError, LookupError, TypeError):
        return None
    return names if isinstance(names, list) else None
