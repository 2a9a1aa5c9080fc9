"""A run in a process of its own: what Lightning starts for several devices, and a GPU lost, end with it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bigain.errors import InputError

_MARK = "bigain: error: "


def run_apart(command: Sequence[str], log: Path, number: int) -> None:
    """Run a command of bigain and wait for it.

    Args:
        command: As after `bigain`.
        log: File for what it writes to the terminal.
        number: Of the run among those that are started one after the other by the same launcher.

    Raises:
        InputError: If it ends with neither 0 nor 1; the message is its own.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    except OSError as error:
        raise InputError(f"cannot write {log}: {error}; choose another --output") from error
    with file, _terminable():
        process = subprocess.Popen(
            [sys.executable, "-m", "bigain", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(os.environ, number),
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            # A process that has failed may leave others behind that wait for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status not in (0, 1) or _refusal(log):
        raise InputError(f"{_refusal(log) or _last_line(log) or f'it ended with status {status}'} (see {log})")


def clear_memory() -> bool:
    """Give back what a run in this process left; else its network would stay until the next is loaded beside it.

    Returns:
        Whether a GPU can still be used here: after an illegal access it does nothing more in the same process.
    """
    gc.collect()
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception: a sweep that is told to end must not leave its run behind."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(given: Mapping[str, str], number: int) -> dict[str, str]:
    """The environment, with a meeting point for the processes of this run alone where a launcher has one for all."""
    environment = dict(given)
    base = int(environment.get("MASTER_PORT", 0))
    if not base and int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_JOB_ID" in environment:
        # What Lightning would take for every run of the job.
        base = 15000 + int(environment["SLURM_JOB_ID"][-4:])
    if base:
        environment["MASTER_PORT"] = str(1024 + (base + 1 + number - 1024) % (65536 - 1024))
    # torchrun's own store has the keys of the run before.
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    return environment


def _refusal(log: Path) -> str | None:
    """The first message of `bigain` itself: a process that failed makes others fail."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(_MARK)[2] for line in lines if _MARK in line), None)


def _last_line(log: Path) -> str | None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
