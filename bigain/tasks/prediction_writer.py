"""Append-only logs and generated images on disk: every image that was finished before a kill stays readable."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from filelock import BaseFileLock
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.loading import module_digest
from bigain.cost.environment import session
from bigain.data.base import EvalDataModule, digest_of
from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.runs.files import TEMPORARY_FILES, read_json, sample_path, sync_folder, write_bytes, write_json
from bigain.runs.lock import lock
from bigain.runs.logs import LogPosition, drop_incomplete_line, finished_images, line_at
from bigain.runs.records import Record, SampleRecord
from bigain.tasks.sampler import DiffusionSampler, Generated

# The file that identifies the weights with which a run began.
MODEL = "model.json"
_SESSIONS = "sessions.json"
# At most this many finished images are compared with their files.
_MOST_CHECKED = 32

_log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Writes one JSON line per image to `predictions/rank-<r>.jsonl` of the trainer's root directory.

    With `resume`, images that are already in the logs are skipped. The command line resumes after it has made sure that
    the configuration is the same. Images that cannot be read, if the data is set to skip them, go to
    `predictions/skipped-<r>.jsonl` with the reason; a resumed run tries them again.
    """

    def __init__(self, resume: bool = False) -> None:
        """Set the writer up; without `resume`, a directory with predictions is refused."""
        self.resume = resume
        self._lock: BaseFileLock | None = None

    def reusable_images(self, trainer: Trainer, finished: Mapping[str, LogPosition]) -> frozenset[str]:
        """Return the finished images that need not be done again.

        Raises:
            InputError: If one of a few image files that are checked was replaced.
        """
        data: EvalDataModule = cast("Any", trainer).datamodule
        done = [item for item in data.items if item.image_id in finished]
        for item in done[:: 1 + len(done) // _MOST_CHECKED]:
            try:
                logged = json.loads(line_at(*finished[item.image_id])).get("digest")
                digest = digest_of(data.read_bytes(item))
            except ValueError:
                # The image is gone, or its line is damaged, which is reported at the end.
                continue
            if logged not in (None, digest):
                raise InputError(
                    f"{data.where(item)} was replaced by another image since it was evaluated; choose another "
                    "--output, or --overwrite true to delete the finished images"
                )
        return frozenset(finished)

    def records_of(self, trainer: Trainer, outputs: Any) -> Sequence[Record]:
        """Return the records of a batch, after writing everything else that is kept of it."""
        return outputs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = predictions_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder.parent, trainer.global_rank)
        if trainer.is_global_zero:
            for path in [path for pattern in TEMPORARY_FILES for path in folder.parent.glob(pattern)]:
                path.unlink(missing_ok=True)
        finished = finished_images(folder)
        if finished and not self.resume:
            raise InputError(
                f"{folder} already holds {len(finished)} predictions; choose another default_root_dir, or "
                "PredictionWriter(resume=True) if they are of the same configuration"
            )
        module, data = cast("Any", pl_module), cast("Any", trainer).datamodule
        self._check_same(trainer, module, bool(finished))
        # On a shared file system, processes may see different logs, but they must agree on the remaining images.
        data.finished = trainer.strategy.broadcast(self.reusable_images(trainer, finished))
        if trainer.is_global_zero:
            device = trainer.strategy.root_device
            if any(item.image_id not in data.finished for item in data.items):
                rows = module.forwards.rows_on(device)
                _begin_session(folder, {**session(device), "rows_per_forward": rows}, bool(finished))
        self._log = folder / f"rank-{trainer.global_rank}.jsonl"
        self._log.touch()
        sync_folder(folder)
        drop_incomplete_line(self._log)
        # Images that could not be read are tried again.
        self._skipped = folder / f"skipped-{trainer.global_rank}.jsonl"
        self._skipped.unlink(missing_ok=True)

    def _check_same(self, trainer: Trainer, module: Any, started: bool) -> None:
        """Make sure that labels and weights are those with which the run began. All processes check, so all stop.

        Raises:
            InputError: If classes were added, removed, renamed or reordered since, or the model was trained again.
        """
        space: ClassSpace = cast("Any", trainer).datamodule.class_space
        classes = {"names": [*space.names], "prompts": [*space.prompts], "indices": space.indices and [*space.indices]}
        # Without a compressor, the weights have not been loaded yet.
        module.backbone.load()
        model = {"weights": module_digest(module.backbone)}
        for name, content, subject in (
            ("classes.json", classes, "the classes of the dataset"),
            (MODEL, model, f"the weights of {module.backbone.model}"),
        ):
            path = predictions_folder(trainer) / name
            advice = f"if {subject} are as they were, delete it and run the command again"
            if started and path.is_file() and read_json(path, dict[str, Any], advice) != content:
                raise InputError(
                    f"{subject} are not those that {path} names, with which this run began; choose another --output, "
                    "or --overwrite true to delete the finished images"
                )
            if trainer.is_global_zero:
                write_json(path, content)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        records = self.records_of(trainer, outputs) if outputs else ()
        _append(self._log, [record.to_json() for record in records])
        skipped = [{"image_id": image_id, "reason": reason} for image_id, reason in batch["failed"].items()]
        _append(self._skipped, [json.dumps(entry) for entry in skipped])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class SampleWriter(PredictionWriter):
    """Writes generated images to `samples/<id>.png` and then their lines to the log: see `PredictionWriter`.

    A line in the log means that the image exists: a run that was killed in between generates the image again.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DiffusionSampler)
        self._format = pl_module.images
        self._run = Path(trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)
        if self._format == "none" or not trainer.is_global_zero:
            return
        # An extended run has images that are no longer chosen.
        ids = {
            *finished_images(predictions_folder(trainer)),
            *(item.image_id for item in cast("Any", trainer).datamodule.items),
        }
        paths = {sample_path(self._run, image_id, self._format) for image_id in ids}
        # If the lock file also exists under this name, the file system ignores case.
        names = Counter(str(path).lower() for path in paths) if (self._run / ".LOCK-0").exists() else Counter[str]()
        if same := [path for path in paths if names[str(path).lower()] > 1]:
            raise InputError(
                f"{min(same)} and another image differ only in upper and lower case, which this file system ignores; "
                "choose another --output, or leave one out with --data.subset"
            )
        # After a kill, there can be images that are not in the log yet, and temporary files.
        files = (path for path in (self._run / "samples").rglob("*") if path.is_file() and path.suffix != ".tmp")
        if other := [path for path in files if not self.resume or path not in paths]:
            raise InputError(f"{self._run / 'samples'} holds other images, such as {other[0]}; choose another --output")

    def reusable_images(self, trainer: Trainer, finished: Mapping[str, LogPosition]) -> frozenset[str]:
        if self._format == "none":
            return frozenset(finished)
        # A deleted image is generated again.
        return frozenset(i for i in finished if sample_path(self._run, i, self._format).is_file())

    def records_of(self, trainer: Trainer, outputs: Generated) -> Sequence[SampleRecord]:
        if outputs.files:
            paths = [sample_path(self._run, record.image_id, self._format) for record in outputs.records]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(write_bytes, paths, outputs.files))
        return outputs.records


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Return the different sessions of a run: the environments in which it was started and continued."""
    path = folder / _SESSIONS
    return read_json(path, list[dict[str, Any]], "delete it and run the command again") if path.is_file() else []


def _begin_session(folder: Path, current: dict[str, Any], started: bool) -> None:
    """Add a session to those of a run, and report what differs from the one before."""
    sessions = read_sessions(folder) if started else []
    flat = [{**session, **session["packages"], "packages": None} for session in (*sessions[-1:], current)]
    before, after = flat[0], flat[-1]
    changes = [f"{key} {before.get(key)} -> {after[key]}" for key in after if before.get(key) != after[key]]
    if changes:
        _log.warning(f"warning: continues with {', '.join(changes)}; last digits of earlier images may differ")
    # The current session goes last, even if an earlier one was the same.
    if current not in sessions[-1:]:
        write_json(folder / _SESSIONS, [*(earlier for earlier in sessions if earlier != current), current])


def predictions_folder(trainer: Trainer) -> Path:
    """Return the folder with the logs of a run."""
    return Path(trainer.default_root_dir) / "predictions"


def _append(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a log and wait until they are on disk."""
    if not lines:
        return
    content = memoryview("".join(f"{line}\n" for line in lines).encode())
    try:
        # Unbuffered: closing a buffered file would write again what a full disk refused.
        with path.open("ab", buffering=0) as file:
            while content:
                # An unbuffered write may be partial.
                content = content[file.write(content) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; what is finished is kept, run the command again") from error
