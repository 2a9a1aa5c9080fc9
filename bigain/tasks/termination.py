"""Ending a run at once when it is told to: everything finished is on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A shell reports this plus the number of the signal that ended a process.
_BY_SIGNAL = 128


class Termination(Callback):
    """Ends the process, its data loaders and the processes it launched at a signal, or when its launcher has ended.

    Lightning checks for signals in training only; with several processes its handler calls a collective, which waits
    for processes that may have ended. Schedulers kill the remaining processes after a grace period.
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
            # Not through sys.stderr, which may be in the middle of a line.
            name = signal.Signals(number).name
            os.write(2, f"\nbigain: stopped by {name}; what is finished is kept, run the command again\n".encode())
            # Clean-up would wait for the other processes, and there is nothing left to save.
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
        # The first process may outlive the shell that started it.
        if trainer.global_rank and os.getppid() != self._launcher:
            os.write(2, b"bigain: the process that launched this one has ended; what is finished is kept\n")
            os._exit(_BY_SIGNAL + signal.SIGTERM)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)
        self._before = {}
