"""A cell before it runs: its identity, its state on disk, and the uncompressed cell it is compared with."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import geometry_of
from bigain.commands.lightning_cli import Prepared
from bigain.commands.predict import missing_parts
from bigain.commands.sweep.cells import Cell
from bigain.commands.sweep.subprocess_run import failure_in
from bigain.errors import InputError, message_of
from bigain.runs.configuration import fingerprinted
from bigain.runs.directory import check_directory
from bigain.runs.results import Run, has_results, load_run

Status = Literal["pending", "finished", "incomplete", "failed", "refused"]


@dataclass(frozen=True)
class State:
    """The state of a cell.

    Attributes:
        status: `refused` if its configuration or directory does not fit, `incomplete` if something is missing.
        reason: What failed or is missing; None if nothing.
        run: Its results, where there are any.
    """

    status: Status
    reason: str | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Plan:
    """A cell whose configuration is valid.

    Attributes:
        cell: The cell.
        command: Arguments after `bigain`, including what the cells of a sweep share.
        fingerprint: Identity of its run.
        settings: Flat settings that its numbers depend on, without the compressor.
        compressed: Whether it has a compressor.
        overwrite: Whether to delete an existing run.
    """

    cell: Cell
    command: tuple[str, ...]
    fingerprint: str
    settings: Mapping[str, Any]
    compressed: bool
    overwrite: bool

    @classmethod
    def of(cls, cell: Cell) -> Plan:
        """Create the objects of a cell and identify it; nothing is loaded or written.

        Raises:
            InputError: If its configuration is invalid, or its directory holds something else.
        """
        prepared = Prepared.of(cell.run.task, cell.command)
        config = prepared.config.predict
        if config.baseline:
            raise InputError("--baseline: a table has its own uncompressed cells; leave it out")
        check_directory(cell.directory, config)
        shared: tuple[str, ...] = ()
        model = config.model.init_args
        if "latent_cache" in model and model.latent_cache is None and _has_vae(prepared.model.backbone):
            shared = ("--model.latent_cache", str(cell.directory.parent / "latents"))
        settings = {key: value for key, value in fingerprinted(config).items() if not key.startswith("compressor")}
        compressed = bool(prepared.compressors())
        return cls(cell, (*cell.command, *shared), prepared.fingerprint, settings, compressed, config.overwrite)

    @property
    def state(self) -> State:
        """Its state on disk."""
        return state_of(self.cell, self.fingerprint)

    def baseline(self, plans: Iterable[Plan]) -> Plan | None:
        """Return the generation run that differs only in having no compressor, for the fidelity of this one."""
        if self.cell.run.task != "generation" or not self.compressed:
            return None
        return next((plan for plan in plans if not plan.compressed and plan.settings == self.settings), None)


def _has_vae(backbone: Backbone) -> bool:
    name = backbone.model
    try:
        backbone.model = geometry_of(name)
        return "vae" in backbone.find(backbone.local_files_only).parts
    except InputError:
        # The run will report what is wrong with the model.
        return False
    finally:
        backbone.model = name


def state_of(cell: Cell, fingerprint: str) -> State:
    """Return the state of a cell from its run directory and the log of its last attempt."""
    try:
        run = load_run(cell.directory) if has_results(cell.directory) else None
    except InputError as error:
        return State("incomplete", str(error))
    except OSError as error:
        return State("incomplete", f"{cell.directory} cannot be read: {error.strerror}")
    if run is not None and run.results.get("fingerprint") != fingerprint:
        run = None
    missing = missing_parts(run.results) if run else None
    if run and missing is None:
        return State("finished", run=run)
    failure = failure_in(cell.log)
    if failure:
        return State("failed", failure, run)
    return State("incomplete" if run else "pending", missing, run)


def reason_of(error: Exception) -> str:
    """Return an error as one line; the traceback of an unexpected one goes to stderr."""
    if isinstance(error, InputError):
        return message_of(error)
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    traceback.print_exception(error, file=sys.stderr)
    return " ".join(f"{type(error).__name__}: {error}".split())
