"""The logs of a run: a line per image, in one file per process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bigain.errors import InputError
from bigain.runs.records import ImageRecord, SampleRecord

# How every line begins.
_ID = '{"image_id": '
_DECODER = json.JSONDecoder()

R = TypeVar("R", ImageRecord, SampleRecord)
T = TypeVar("T")


def read_records(folder: Path, kind: type[R] = ImageRecord) -> dict[str, R]:  # type: ignore[assignment]
    """Load all finished images of a run by id. A last line that a kill left incomplete does not count.

    Args:
        folder: `predictions` in a run directory.
        kind: `ImageRecord` of a classification, `SampleRecord` of a generation.

    Raises:
        InputError: If a line is damaged.
    """
    return {record.image_id: record for record in iterate_records(folder, kind)}


def iterate_records(folder: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records that `read_records` loads, one by one."""
    return _entries(folder, "rank-*.jsonl", kind.from_json)


def finished_ids(folder: Path) -> frozenset[str]:
    """Ids of the finished images of a run. Only the start of each line is parsed, since lines can be long.

    Raises:
        InputError: If a line is damaged.
    """
    return frozenset(_entries(folder, "rank-*.jsonl", _id_of))


def read_skipped(folder: Path) -> dict[str, str]:
    """Reason for every image of a run that could not be read, by id.

    Raises:
        InputError: If a line is damaged.
    """
    return dict(_entries(folder, "skipped-*.jsonl", _skipped_of))


def drop_incomplete_line(path: Path) -> None:
    """Cut off the incomplete line that a kill left at the end of a log."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def _entries(folder: Path, pattern: str, parse: Callable[[str], T]) -> Iterator[T]:
    """Yield the parsed complete lines of the logs of all processes."""
    for path in sorted(folder.glob(pattern)):
        try:
            # As bytes, so that a line that is not UTF-8 can be named by its number.
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield _parse(path, number, line, parse)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}); choose another --output") from error


def _parse(path: Path, number: int, line: bytes, parse: Callable[[str], T]) -> T:
    try:
        return parse(line.decode())
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}; delete that line to have its image done again") from error


def _id_of(line: str) -> str:
    if not (line.startswith(_ID + '"') and line.endswith("}\n")):
        raise ValueError(f"not a prediction record: {line[:80]!r}")
    image_id: str = _DECODER.raw_decode(line, len(_ID))[0]
    return image_id


def _skipped_of(line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        return entry["image_id"], entry["reason"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a skipped image: {line[:80]!r}") from error
