"""Hugging Face image datasets on disk: parquet files with an `image` and a `label` column."""

from __future__ import annotations

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

# Raised for damage: in the file, in a text, in columns that are missing or of another type.
_DAMAGED = (OSError, pa.ArrowException, LookupError, ValueError, TypeError)
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
            content: object = _read_images(file, group)[row].as_py()["bytes"]
        except _DAMAGED as error:
            raise InputError(f"{self} cannot be read ({error}); download the file again") from error
        if not isinstance(content, bytes):
            raise InputError(f"{self} has no bytes, only a path; save the dataset with its images")
        return content


def read_rows(files: Sequence[Path], classes: Sequence[str]) -> dict[str, ParquetRow]:
    """Read the rows of parquet files by image id, in file order, but no image; `classes` are those of the labels.

    Raises:
        InputError: If a file is damaged, has different columns or labels, or labels that contradict the file names.
    """
    rows: dict[str, ParquetRow] = {}
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                columns = parquet.read_row_group(group, columns=["label", "image.path"])
                pairs = zip(columns["label"].to_pylist(), columns["image"].to_pylist(), strict=True)
                for number, (label, image) in enumerate(pairs):
                    name = image["path"]
                    class_in_name = _CLASS.search(name)
                    if label < 0 or (class_in_name and class_in_name[1] != classes[label]):
                        raise ValueError(f"{name} has the label {label}, expected classes in wnid order")
                    row = ParquetRow((file, group, number), stem_of(name), classes[label])
                    if (other := rows.setdefault(row.image_id, row)) is not row:
                        raise InputError(f"{row} is the same image as {other}; remove one of the files")
        except InputError:
            raise
        except _DAMAGED as error:
            problem = f"{file} is not a parquet file of Hugging Face's imagenet-1k ({error})"
            raise InputError(f"{problem}; download it again") from error
    return rows


@lru_cache(maxsize=1)
def _read_images(file: Path, group: int) -> Any:
    # Neighbouring images share a row group, which can only be read whole.
    return pq.ParquetFile(file).read_row_group(group, columns=["image"])["image"]
