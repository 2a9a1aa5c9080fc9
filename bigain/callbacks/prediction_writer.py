"""Append-only prediction logs: whatever was finished before a kill stays readable."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.errors import InputError
from bigain.metrics.records import ImageRecord


class PredictionWriter(Callback):
    """Writes one JSON line per image to `predictions/rank-<r>.jsonl` of the trainer's root directory.

    With `resume`, images that are already there are passed over. The command line resumes after it has made sure that
    the configuration is the same. Images that cannot be read, where the data is told to skip them, are noted in
    `predictions/skipped-<r>.jsonl` with the reason; a resumed run tries them again.
    """

    def __init__(self, resume: bool = False) -> None:
        """Set the writer up.

        Args:
            resume: Continue from the predictions that are there; otherwise such a directory is refused.
        """
        self.resume = resume
        self._log: TextIO | None = None
        self._skipped: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = predictions_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        finished = frozenset(read_records(folder))
        if finished and not self.resume:
            raise InputError(
                f"{folder} already holds {len(finished)} predictions; choose another default_root_dir, or "
                "PredictionWriter(resume=True) if they are of the same configuration"
            )
        trainer.datamodule.finished = finished  # type: ignore[attr-defined]
        self._skipped = folder / f"skipped-{trainer.global_rank}.jsonl"
        path = folder / f"rank-{trainer.global_rank}.jsonl"
        _drop_torn_line(path)
        self._log = path.open("a", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        records: Sequence[ImageRecord] = outputs or ()
        if batch["failed"] and self._skipped is not None:
            with self._skipped.open("a", encoding="utf-8") as file:
                lines = ({"image_id": image_id, "reason": reason} for image_id, reason in batch["failed"].items())
                file.writelines(json.dumps(line) + "\n" for line in lines)
        if self._log is None or not records:
            return
        self._log.write("".join(record.to_json() + "\n" for record in records))
        self._log.flush()
        os.fsync(self._log.fileno())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def predictions_folder(trainer: Trainer) -> Path:
    """Where the logs of a run are."""
    return Path(trainer.default_root_dir) / "predictions"


def read_records(folder: Path) -> dict[str, ImageRecord]:
    """All finished images of a run by id, whichever process wrote them; a torn last line counts as not finished."""
    records = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            if line.endswith("\n"):
                record = _parse(path, number, line)
                records[record.image_id] = record
    return records


def read_skipped(folder: Path) -> dict[str, str]:
    """Reason for every image of a run that could not be read, by id."""
    lines = [line for path in sorted(folder.glob("skipped-*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return {entry["image_id"]: entry["reason"] for entry in map(json.loads, lines)}


def _parse(path: Path, number: int, line: str) -> ImageRecord:
    try:
        return ImageRecord.from_json(line)
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
