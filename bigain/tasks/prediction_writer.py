"""Append-only prediction logs: whatever was finished before a kill stays readable."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.digest import module_digest
from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.runs.files import replace_file
from bigain.runs.lock import lock, refuse_left_over
from bigain.runs.records import ImageRecord, Record

# Names the weights that a run began with.
MODEL = "model.json"
# How every line begins.
_ID = '{"image_id": '
_DECODER = json.JSONDecoder()

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class RecordWriter(Callback, ABC):
    """Writes one JSON line per image to `predictions/rank-<r>.jsonl` of the trainer's root directory.

    With `resume`, images that are already there are passed over. The command line resumes after it has made sure that
    the configuration is the same. Images that cannot be read, where the data is told to skip them, are noted in
    `predictions/skipped-<r>.jsonl` with the reason; a resumed run tries them again.
    """

    record: type[Record]

    def __init__(self, resume: bool = False) -> None:
        """Set the writer up.

        Args:
            resume: Continue from the predictions that are there; otherwise such a directory is refused.
        """
        self.resume = resume
        self._log: FileIO | None = None
        self._skipped: Path | None = None
        self._lock: BaseFileLock | None = None

    def still_there(self, finished: frozenset[str]) -> frozenset[str]:
        """Which finished images need not be done again."""
        return finished

    @abstractmethod
    def records_of(self, trainer: Trainer, outputs: Any) -> Sequence[Record]:
        """What a batch adds to the log; whatever else is kept of it is on disk when this returns."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = predictions_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder.parent, trainer.global_rank)
        if trainer.is_global_zero:
            refuse_left_over(folder.parent, trainer.world_size)
        finished = finished_ids(folder)
        if finished and not self.resume:
            raise InputError(
                f"{folder} already holds {len(finished)} predictions; choose another default_root_dir, or "
                "PredictionWriter(resume=True) if they are of the same configuration"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._check_same(trainer, pl_module, bool(finished))
        data.finished = finished = self.still_there(finished)
        if trainer.world_size > 1:
            # A shared file system may show the processes different logs, and what is left has to be dealt out once.
            data.finished = trainer.strategy.broadcast(finished)
        self._skipped = folder / f"skipped-{trainer.global_rank}.jsonl"
        # What could not be read is tried again, so what is known of it is of no use.
        self._skipped.unlink(missing_ok=True)
        if trainer.is_global_zero:
            for left in folder.glob("skipped-*.jsonl"):
                if int(left.stem.rpartition("-")[2]) >= trainer.world_size:
                    left.unlink(missing_ok=True)
        path = folder / f"rank-{trainer.global_rank}.jsonl"
        _drop_torn_line(path)
        # Without a buffer: what a full disk refused would be written again when the file is closed.
        self._log = path.open("ab", buffering=0)

    def _check_same(self, trainer: Trainer, module: Any, started: bool) -> None:
        """Make sure that labels and weights are what they were when the run began.

        Raises:
            InputError: If classes were added, removed, renamed or reordered since, or the model was trained again.
        """
        # All processes look, so that all of them stop.
        folder, write = predictions_folder(trainer), trainer.is_global_zero
        space: ClassSpace = trainer.datamodule.class_space  # type: ignore[attr-defined]
        classes = {"names": [*space.names], "prompts": [*space.prompts], "indices": space.indices and [*space.indices]}
        _keep(folder / "classes.json", classes, started, write, "the classes of the dataset are not those")
        # Without a compressor nobody has read them yet.
        module.backbone.load()
        model = {"weights": module_digest(module.backbone)}
        _keep(folder / MODEL, model, started, write, f"the weights of {module.backbone.model} are not those")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        records = self.records_of(trainer, outputs) if outputs else ()
        try:
            if self._log is not None and records:
                _write_all(self._log, "".join(record.to_json() + "\n" for record in records).encode())
                os.fsync(self._log.fileno())
            if self._skipped is not None and batch["failed"]:
                lines = ({"image_id": image_id, "reason": reason} for image_id, reason in batch["failed"].items())
                with self._skipped.open("ab", buffering=0) as file:
                    _write_all(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        except OSError as error:
            raise InputError(
                f"cannot write the log in {predictions_folder(trainer)}: {error}; what is finished is kept, run the "
                "command again"
            ) from error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class PredictionWriter(RecordWriter):
    """The log of a classification: see `RecordWriter`."""

    record = ImageRecord

    def records_of(self, trainer: Trainer, outputs: Any) -> Sequence[ImageRecord]:
        return outputs


def _write_all(file: FileIO, content: bytes) -> None:
    """Write bytes to a file without a buffer, which may take them in pieces."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def predictions_folder(trainer: Trainer) -> Path:
    """Where the logs of a run are."""
    return Path(trainer.default_root_dir) / "predictions"


def read_records(folder: Path, kind: type[R] = ImageRecord) -> dict[str, R]:  # type: ignore[assignment]
    """All finished images of a run by id, whichever process wrote them; a torn last line counts as not finished."""
    records: dict[str, R] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in _lines(path):
            if line.endswith(b"\n"):
                record = _parse(path, number, line, kind.from_json)
                records[record.image_id] = record
    return records


def finished_ids(folder: Path) -> frozenset[str]:
    """Ids of the finished images of a run, read line by line: records of many classes are long."""
    ids = set()
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in _lines(path):
            if line.endswith(b"\n"):
                ids.add(_parse(path, number, line, _id_of))
    return frozenset(ids)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a log, as bytes: what is no text is told by the line."""
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --output") from error


def _keep(path: Path, found: dict[str, Any], started: bool, write: bool, complaint: str) -> None:
    """Write what a run begins with, or raise an InputError if it began with something else."""
    text = json.dumps(found)
    if started and path.is_file() and path.read_bytes() != text.encode():
        raise InputError(
            f"{complaint} that {path} names, with which this run began; choose another --output, or --overwrite true"
        )
    if write:
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_skipped(folder: Path) -> dict[str, str]:
    """Reason for every image of a run that could not be read, by id."""
    paths = sorted(folder.glob("skipped-*.jsonl"))
    found = (_parse(path, number, line, _skip_of) for path in paths for number, line in _lines(path))
    return dict(found)


def _skip_of(line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        return entry["image_id"], entry["reason"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a skipped image: {line[:80]!r}") from error


def _id_of(line: str) -> str:
    if not (line.startswith(_ID + '"') and line.endswith("}\n")):
        raise ValueError(f"not a prediction record: {line[:80]!r}")
    image_id: str = _DECODER.raw_decode(line, len(_ID))[0]
    return image_id


def _parse(path: Path, number: int, line: bytes, parse: Callable[[str], T]) -> T:
    try:
        return parse(line.decode())
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}; delete that line to have its image done again") from error


def _drop_torn_line(path: Path) -> None:
    """Cut what a kill left of an unfinished line, so that the next line starts cleanly."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
