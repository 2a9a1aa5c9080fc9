"""A cell as a run in its own process: other ranks that Lightning starts, GPU memory and failures end with it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from bigain.commands.termination import report_signal
from bigain.errors import InputError

_ERROR = "bigain: error: "
_SECONDS_BETWEEN_UPDATES = 0.5


def run_in_subprocess(command: Sequence[str], log: Path, show: Callable[[str], None]) -> None:
    """Run a bigain command and wait for it; if it fails, its log holds the reason (`failure_in`).

    Args:
        command: Arguments after `bigain`.
        log: File for its output.
        show: Called now and then with the last line of the output.

    Raises:
        InputError: If the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    except OSError as error:
        raise InputError(f"cannot write {log}: {error}; choose another --output") from error
    with file, _signals_raise():
        program = [sys.executable, "-m", "bigain", *command]
        process = subprocess.Popen(program, stdout=file, stderr=file, start_new_session=True)
        try:
            while process.returncode is None:
                try:
                    process.wait(_SECONDS_BETWEEN_UPDATES)
                except subprocess.TimeoutExpired:
                    show(_last_line(log))
        finally:
            # A failed rank may leave others waiting for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode not in (0, 1) and failure_in(log) is None:
        reason = _last_line(log) or f"the process ended with status {process.returncode}"
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"\n{_ERROR}{reason}\n")


@contextlib.contextmanager
def claimed(directory: Path, log: Path) -> Iterator[bool]:
    """Hold a cell, by its log, against other commands that sweep into the same folder; yields whether it is free."""
    with contextlib.ExitStack() as locks:
        free = True
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(log.with_suffix(".lock"), blocking=False))
            if directory.is_dir():
                # Released at once: the run locks its directory itself.
                with FileLock(directory / ".lock-0", blocking=False):
                    pass
        except Timeout:
            free = False
        except OSError:
            # There are no locks on this file system; a folder that cannot be written is reported by the run.
            pass
        yield free


def failure_in(log: Path) -> str | None:
    """Return why a cell failed: the first error in its log, since one failed rank makes the others fail."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((f"{line.partition(_ERROR)[2]} (see {log})" for line in lines if _ERROR in line), None)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals into an exception, so that a terminated sweep ends its cell as well."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(report_signal(number))

    previous = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    """Return the last non-empty line; a progress bar rewrites its line after a carriage return."""
    with log.open("rb") as file:
        file.seek(-min(4096, log.stat().st_size), os.SEEK_END)
        text = file.read().decode(errors="replace")
    return next((line.strip() for line in reversed(re.split(r"[\r\n]", text)) if line.strip()), "")
