"""A cell with its run directory: whether it can run, and its state on disk."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bigain.commands.lightning_cli import Prepared
from bigain.commands.predict import missing_parts
from bigain.commands.sweep.subprocess_run import failure_in
from bigain.commands.sweep.tables import Cell
from bigain.errors import InputError, message_of
from bigain.runs.directory import check_directory
from bigain.runs.names import NOT_OF_ONE_STEP
from bigain.runs.numbers import scaled, with_interval
from bigain.runs.results import Run, has_results, load_run


class Plan:
    """A cell to run, with its options from the command line.

    Attributes:
        directory: Its run directory.
        log: Output of its last attempt.
        prepared: Its objects; nothing is loaded. None if it is refused or not applicable.
        status: `refused` if its configuration or directory does not fit, `incomplete` if something is missing, `n/a` if
            its compressor cannot do the task, `elsewhere` if another command is doing it.
        reason: What failed or is missing; None if nothing.
        run: Its results, where there are any.
    """

    prepared: Prepared | None = None
    status: Literal["pending", "finished", "incomplete", "failed", "refused", "n/a", "elsewhere"] = "refused"
    reason: str | None = None
    run: Run | None = None

    def __init__(self, cell: Cell, folder: Path, options: Sequence[str], kind: type[Prepared] = Prepared) -> None:
        """Create the objects of a cell with `kind`, and read its state."""
        self.cell, self.directory = cell, folder / cell.name
        self.log = folder / "logs" / f"{cell.name}.log"
        self._command = ["predict", *cell.arguments(), *options, "--output", str(self.directory)]
        try:
            prepared = kind.of(cell.task, self._command)
            if prepared.config.predict.baseline:
                raise InputError("--baseline: a table has its own uncompressed cells; leave it out")
            check_directory(self.directory, prepared.config.predict)
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            self.reason = reason_of(error)
            return
        if prepared.not_applicable:
            self.status, self.reason = "n/a", f"{NOT_OF_ONE_STEP}: {prepared.not_applicable}"
        else:
            self.prepared = prepared
            self.read_state()

    def read_state(self) -> None:
        """Set the state from the run directory and the log of the last attempt."""
        assert self.prepared is not None
        self.status, self.reason, self.run = "pending", None, None
        try:
            run = load_run(self.directory) if has_results(self.directory) else None
        except (InputError, OSError) as error:
            self.status, self.reason = "incomplete", reason_of(error)
            return
        if run is not None and run.results["fingerprint"] == self.prepared.fingerprint:
            self.run, self.reason = run, missing_parts(run.results)
            self.status = "incomplete" if self.reason else "finished"
        failure = failure_in(self.log)
        if failure and self.status != "finished":
            self.status, self.reason = "failed", failure

    @property
    def command(self) -> list[str]:
        """Arguments after `bigain`; the cells of a sweep share encoded images."""
        assert self.prepared is not None
        model = self.prepared.config.predict.model.init_args
        if "latent_cache" in model and model.latent_cache is None:
            return [*self._command, "--model.latent_cache", str(self.directory.parent / "latents")]
        return self._command

    @property
    def metric(self) -> str:
        """`top1 81.2 % (78.6 to 83.5)`; empty without results."""
        if not self.run or not (name := self.run.main_metric):
            return ""
        estimate = self.run.metrics[name]
        return f"{name} {with_interval(*scaled(estimate), estimate['unit'])}"

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.status, self.metric, self.reason)))


def reason_of(error: Exception) -> str:
    """Return an error as one line; the traceback of an unexpected one goes to stderr."""
    if isinstance(error, InputError):
        return message_of(error)
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    traceback.print_exception(error, file=sys.stderr)
    return " ".join(f"{type(error).__name__}: {error}".split())
