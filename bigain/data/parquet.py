"""Hugging Face image datasets on disk: parquet files with an `image` and a `label` column."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigain.data.folders import stem_of
from bigain.errors import InputError

# Raised by pyarrow for damage: in the file, in a text, in columns of unequal length.
_DAMAGED = (OSError, pa.ArrowException, UnicodeDecodeError, LookupError, ValueError)
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
        content: bytes | None = image and image["bytes"]
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
        parquet = _open(file)
        try:
            features = json.loads(parquet.schema_arrow.metadata[b"huggingface"])["info"]["features"]
            number = len(features["label"]["names"])
        except (ValueError, LookupError, TypeError):
            number = len(classes)
        if number != len(classes):
            raise InputError(
                f"{file} has labels of {number} classes; expected ImageNet-1K's {len(classes)} in wnid order"
            )
        for group in range(parquet.num_row_groups):
            try:
                columns = parquet.read_row_group(group, columns=["label", "image.path"])
                pairs = list(zip(columns["label"].to_pylist(), columns["image"].to_pylist(), strict=True))
            except _DAMAGED as error:
                raise InputError(f"{file}, row group {group} cannot be read ({error}); download it again") from error
            for number, (label, image) in enumerate(pairs):
                where, name = f"{file}, row group {group}, row {number}", (image and image["path"]) or ""
                if label is None or not 0 <= label < len(classes):
                    raise InputError(f"{where}: label {label}, not in 0..{len(classes) - 1}")
                if (class_in_name := _CLASS.search(name)) and class_in_name[1] != classes[label]:
                    expected = "expected the labels of Hugging Face's imagenet-1k, in wnid order"
                    raise InputError(f"{where}: {name} has the label {label}, which is {classes[label]}; {expected}")
                image_id = stem_of(name) if name else f"{file.stem}/{group:05d}/{number:05d}"
                row = ParquetRow((file, group, number), image_id, classes[label])
                if (other := rows.setdefault(image_id, row)) is not row:
                    raise InputError(f"{file} and {other.position[0]} both hold image {image_id}; remove one")
    return rows


@lru_cache(maxsize=1)
def _read_images(file: Path, group: int) -> Any:
    # Neighbouring images share a row group, which can only be read whole.
    return _open(file).read_row_group(group, columns=["image"])["image"]


def _open(file: Path) -> Any:
    """Open a file; raise an InputError if it is damaged or has other columns."""
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} is not a readable parquet file ({error}); download it again") from error
    kinds = {column.name: column.type for column in parquet.schema_arrow}
    image, label = kinds.get("image", pa.null()), kinds.get("label", pa.null())
    fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    is_image = fields.get("bytes") in (pa.binary(), pa.large_binary()) and fields.get("path") in (
        pa.string(),
        pa.large_string(),
    )
    if not is_image or not pa.types.is_integer(label):
        columns = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise InputError(f"{file} has the columns {columns}; expected image (bytes, path) and label (an integer)")
    return parquet
