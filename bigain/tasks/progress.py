"""What a run is going to do, and how far it is, on stderr."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tabulate import tabulate

from bigain.compressors.base import compressors_of
from bigain.cost.environment import slow_precision
from bigain.runs.numbers import counted
from bigain.runs.summary import compressor_text

_SECONDS_BETWEEN_LINES = 30


class Progress(Callback):
    """Says what a run is going to do and, without a progress bar, every 30 s and at the end how far it is.

    Several processes do equal shares; the first one speaks for all.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        _print(trainer, f"loading {module.backbone.model}")

    # Called after everything that can refuse a run.
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        data, classes = module.data, len(module.data.class_space)
        compressors = [compressor.description() for compressor in compressors_of(trainer)]
        evaluations = module.evaluations_per_image(classes)
        at_most = "at most " if getattr(module, "race", None) is not None else ""
        self._images, self._done_before = len(data.items), sum(item.image_id in data.finished for item in data.items)
        device, precision = trainer.strategy.root_device.type, str(trainer.precision)
        reason, faster = slow_precision(device, precision)
        slow = f": {reason}; use --trainer.precision {faster}" if reason else ""
        rows = [
            ("dataset", f"{data.name}, {counted(self._images, 'image')}, {counted(classes, 'class')}"),
            ("model", f"{module.backbone.model}, {type(module).__name__}"),
            ("compressor", ", ".join(map(compressor_text, compressors)) or "none"),
            ("evaluations", f"{at_most}{evaluations:,} per image, {at_most}{evaluations * self._images:,} in all"),
            ("device", f"{trainer.world_size} x {device}, precision {precision}{slow}"),
            ("writes to", str(Path(trainer.default_root_dir))),
            *([("done before", counted(self._done_before, "image"))] if self._done_before else []),
        ]
        _print(trainer, tabulate(rows, tablefmt="plain", disable_numparse=True))
        self._done = self._labelled = self._correct = self._reported = 0
        self._start = self._next_report = time.monotonic()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._done += len(batch["image_id"])
        for record in outputs if isinstance(outputs, list) else ():
            if hasattr(record, "prediction"):
                self._labelled += bool(record.labels)
                self._correct += record.prediction in record.labels
        if time.monotonic() >= self._next_report:
            self.on_predict_epoch_end(trainer, pl_module)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `120 of 500 images, top1 81.7 % of 120, 0.31 s per image, 2 min left`."""
        now, processes = time.monotonic(), trainer.world_size
        if trainer.progress_bar_callback is not None or self._done == self._reported:
            return
        self._reported, self._next_report = self._done, now + _SECONDS_BETWEEN_LINES
        done = min(self._done_before + processes * self._done, self._images)
        texts = [f"{'about ' if processes > 1 else ''}{done:,} of {counted(self._images, 'image')}"]
        if self._labelled:
            texts.append(f"top1 {100 * self._correct / self._labelled:.1f} % of {self._labelled:,}")
        per_image = (now - self._start) / (processes * self._done)
        texts += [f"{per_image:.2g} s per image", f"{duration((self._images - done) * per_image)} left"]
        _print(trainer, ", ".join(texts))


def duration(seconds: float) -> str:
    """Return `40 s`, `12 min`, `3.4 h` or `2.1 days`."""
    for limit, unit, length, digits in ((100, "s", 1, 0), (6000, "min", 60, 0), (172_800, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _print(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
