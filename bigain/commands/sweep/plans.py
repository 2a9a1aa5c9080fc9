"""A cell before it runs: its identity, its state on disk, and the uncompressed cell it is compared with."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

    @property
    def metric(self) -> str:
        """`top1 0.81`; empty without results."""
        name = self.run.main_metric if self.run else None
        return f"{name} {self.run.metrics[name]['value']:.4g}" if self.run and name else ""

    @property
    def seconds(self) -> str:
        """Seconds of the run's last session; empty without results."""
        return f"{self.run.results['timing']['seconds']:.1f}" if self.run else ""

    def __str__(self) -> str:
        """Return status, main metric and reason on one line."""
        return "  ".join(filter(None, (self.status, self.metric, self.reason)))


@dataclass(frozen=True)
class Plan:
    """A cell whose configuration is valid.

    Attributes:
        cell: The cell.
        prepared: Its objects; nothing is loaded.
    """

    cell: Cell
    prepared: Prepared = field(repr=False)

    @property
    def compressed(self) -> bool:
        """Whether it has a compressor."""
        return bool(self.prepared.compressors())

    @property
    def overwrite(self) -> bool:
        """Whether to delete an existing run."""
        return bool(self.prepared.config.predict.overwrite)

    @property
    def command(self) -> Sequence[str]:
        """Arguments after `bigain`; the cells of a sweep share encoded images."""
        model = self.prepared.config.predict.model.init_args
        if "latent_cache" in model and model.latent_cache is None and _has_vae(self.prepared.model.backbone):
            return *self.cell.command, "--model.latent_cache", str(self.cell.directory.parent / "latents")
        return self.cell.command

    @property
    def settings(self) -> Mapping[str, Any]:
        """Flat settings that its numbers depend on, without the compressor."""
        settings = fingerprinted(self.prepared.config.predict)
        return {key: value for key, value in settings.items() if not key.startswith("compressor")}

    @property
    def state(self) -> State:
        """Its state, from its run directory and the log of its last attempt."""
        directory = self.cell.directory
        try:
            run = load_run(directory) if has_results(directory) else None
        except (InputError, OSError) as error:
            return State("incomplete", reason_of(error))
        if run is not None and run.results.get("fingerprint") != self.prepared.fingerprint:
            run = None
        missing = missing_parts(run.results) if run else None
        if run and missing is None:
            return State("finished", run=run)
        failure = failure_in(self.cell.log)
        if failure:
            return State("failed", failure, run)
        return State("incomplete" if run else "pending", missing, run)

    def baseline(self, plans: Iterable[Plan]) -> Plan | None:
        """Return the plan that differs only in having no compressor."""
        return next((plan for plan in plans if not plan.compressed and plan.settings == self.settings), None)


def plans_of(cells: Sequence[Cell], kind: type[Prepared] = Prepared) -> tuple[dict[str, Plan], dict[str, State]]:
    """Return the plans of the cells that can run, and the states of those that are refused, by name."""
    plans: dict[str, Plan] = {}
    refused: dict[str, State] = {}
    for cell in cells:
        try:
            prepared = kind.of(cell.run.task, cell.command)
            config = prepared.config.predict
            if config.baseline:
                raise InputError("--baseline: a table has its own uncompressed cells; leave it out")
            check_directory(cell.directory, config)
            plans[cell.name] = Plan(cell, prepared)
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            refused[cell.name] = State("refused", reason_of(error))
    return plans, refused


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


def reason_of(error: Exception) -> str:
    """Return an error as one line; the traceback of an unexpected one goes to stderr."""
    if isinstance(error, InputError):
        return message_of(error)
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    traceback.print_exception(error, file=sys.stderr)
    return " ".join(f"{type(error).__name__}: {error}".split())
