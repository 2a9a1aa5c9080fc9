"""Ending this program at once, from its first moment: everything finished is on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

# A shell reports this plus the number of the signal that ended a process.
_BY_SIGNAL = 128
_POLL_SECONDS = 1.0


def end_at_signals() -> None:
    """End the process and its data loaders at SIGTERM or SIGINT, which only the main thread can ask for."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for process in multiprocessing.active_children():
        process.kill()
    report_signal(number)
    # Clean-up would wait for the other processes, and there is nothing left to save.
    os._exit(_BY_SIGNAL + number)


def report_signal(number: int) -> int:
    """Say on stderr that a signal ended this program, and return the exit status for it."""
    # Not through sys.stderr, which may be in the middle of a line.
    name = signal.Signals(number).name
    os.write(2, f"\nbigain: stopped by {name}; runs keep what is finished, run the command again\n".encode())
    return _BY_SIGNAL + number


def end_with_launcher() -> None:
    """End the process soon after the one that started it has ended, which it may wait for."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_POLL_SECONDS)
        os.write(2, b"bigain: the process that launched this one has ended; what is finished is kept\n")
        os._exit(_BY_SIGNAL + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def launched_rank() -> int:
    """Return the rank that Lightning, torchrun or srun gave this process, by Lightning's rule; 0 without a launcher."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return next((int(os.environ[key]) for key in keys if key in os.environ), 0)
