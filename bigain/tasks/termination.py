"""When a run has to end: it ends at once, for everything finished is on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What a shell reports of a process that a signal ended: so much more than its number.
_BY_SIGNAL = 128


class Termination(Callback):
    """Ends the process, with those that load its data and those it launched, at a signal or when its launcher is gone.

    Lightning notes the signal and looks at that note in training only; with several processes it calls a collective in
    the handler, which waits for processes that may be gone. Schedulers kill whatever is left after a grace period.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before: dict[int, Any] = {}
        self._launcher = os.getppid()
        # Handlers can only be set in the main thread.
        if threading.current_thread() is not threading.main_thread():
            return

        def end(number: int, frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            for process in multiprocessing.active_children():
                process.kill()
            # Not sys.stderr, which may be in the middle of a line.
            name = signal.Signals(number).name
            os.write(2, f"\nbigain: stopped by {name}; what is finished is kept, run the command again\n".encode())
            # No clean-up: it would wait for the other processes, and there is nothing left to save.
            os._exit(_BY_SIGNAL + number)

        self._before = {number: signal.signal(number, end) for number in _SIGNALS}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The first process may well outlive the shell it was started from.
        if trainer.global_rank and os.getppid() != self._launcher:
            os.write(2, b"bigain: the process that launched this one is gone; what is finished is kept\n")
            os._exit(_BY_SIGNAL + signal.SIGTERM)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)
        self._before = {}
