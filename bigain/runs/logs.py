"""The logs of a run: a line per image, in one file per process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from bigain.errors import InputError
from bigain.runs.records import ImageRecord, Record

# How every line begins.
_ID = '{"image_id": '
# Fields that a `LoggedRecord` reads from the log again.
_READ_AGAIN = {"classes", "trials", "timesteps", "errors", "survivors", "bands"}

# A log, and the offset in bytes at which a line begins.
LogPosition: TypeAlias = tuple[Path, int]
R = TypeVar("R", bound=Record)
T = TypeVar("T")


class LoggedRecord(ImageRecord):
    """A classified image in a log. Its pairs and survivors are read from its line when they are used.

    Together, those of a run of ImageNet-1K would take gigabytes.
    """

    def __init__(self, record: ImageRecord, read: Callable[[], ImageRecord]) -> None:
        """Keep the small fields of a record, and the function that reads all of it again."""
        self.evaluations, self.width = record.evaluations, record.width
        for name in vars(record).keys() - _READ_AGAIN:
            setattr(self, name, getattr(record, name))
        self._read = read

    def __getattr__(self, name: str) -> Any:
        # Called for attributes that are not set.
        if name not in _READ_AGAIN:
            raise AttributeError(name)
        return getattr(self._read(), name)


def read_records(folder: Path, kind: type[R] = ImageRecord) -> dict[str, R]:  # type: ignore[assignment]
    """Load all finished images of a run by id, from `predictions` in its directory.

    A last line that a kill left incomplete does not count. Records of a classification are `LoggedRecord`.

    Raises:
        InputError: If a line is damaged.
    """
    records: dict[str, Any] = {}

    # One record is enough: its fields are used together.
    @lru_cache(1)
    def read(path: Path, offset: int) -> ImageRecord:
        return ImageRecord.from_json(line_at(path, offset))

    for position, record in _entries(folder, "rank-*.jsonl", kind.from_json):
        logged = LoggedRecord(record, partial(read, *position)) if isinstance(record, ImageRecord) else record
        records[logged.image_id] = logged
    return records


def iterate_records(folder: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records that `read_records` loads, one by one, each with all its fields."""
    return (record for _, record in _entries(folder, "rank-*.jsonl", kind.from_json))


def line_at(path: Path, offset: int) -> str:
    """Read the line of one image, which begins at an offset in bytes."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline().decode()


def finished_images(folder: Path) -> dict[str, LogPosition]:
    """Return where the line of each finished image begins. Only its start is parsed, since lines can be long.

    Raises:
        InputError: If a line is damaged.
    """
    return {image_id: position for position, image_id in _entries(folder, "rank-*.jsonl", _id_of)}


def read_skipped(folder: Path) -> dict[str, str]:
    """Return the reason for every image of a run that could not be read, by id.

    Raises:
        InputError: If a line is damaged.
    """
    entries = [entry for _, entry in _entries(folder, "skipped-*.jsonl", json.loads)]
    return {entry["image_id"]: entry["reason"] for entry in entries}


def drop_incomplete_line(path: Path) -> None:
    """Cut off the incomplete line that a kill left at the end of a log."""
    with path.open("rb+") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _entries(folder: Path, pattern: str, parse: Callable[[str], T]) -> Iterator[tuple[LogPosition, T]]:
    """Yield position and content of the complete lines of the logs of all processes."""
    for path in sorted(folder.glob(pattern)):
        offset = number = 0
        try:
            # As bytes, so that a line that is not UTF-8 can be named by its number.
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield (path, offset), parse(line.decode())
                    offset, number = offset + len(line), number + 1
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}); choose another --output") from error
        except ValueError as error:
            where = f"{path}, line {number + 1}"
            raise InputError(f"{where}: {error}; delete that line to have its image done again") from error


def _id_of(line: str) -> str:
    if not (line.startswith(_ID + '"') and line.endswith("}\n")):
        raise ValueError(f"not a prediction record: {line[:80]!r}")
    return str(json.JSONDecoder().raw_decode(line, len(_ID))[0])
