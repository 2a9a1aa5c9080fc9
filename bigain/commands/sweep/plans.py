"""What is known of a cell before it runs: who it is, whether it is finished, and what it is to be compared with."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import geometry_of
from bigain.commands.predict import lacking
from bigain.commands.prepared import Prepared
from bigain.commands.sweep.cells import Cell
from bigain.errors import InputError, message_of
from bigain.runs.configuration import fingerprinted
from bigain.runs.directory import check_directory
from bigain.runs.results import Run, load_run

Status = Literal["pending", "finished", "incomplete", "failed"]

LATENTS = "latents"


@dataclass(frozen=True)
class Plan:
    """A cell whose configuration is in order.

    Attributes:
        cell: The cell.
        command: As after `bigain`, with what the cells of the sweep share.
        fingerprint: Of its run.
        settings: What its numbers depend on, flat, but the compressor.
        compressed: Whether it has one.
        processes: How many the run takes.
        overwrite: Whether what is there is to be deleted.
    """

    cell: Cell
    command: tuple[str, ...]
    fingerprint: str
    settings: Mapping[str, Any]
    compressed: bool
    processes: int
    overwrite: bool

    @classmethod
    def of(cls, cell: Cell) -> Plan:
        """Make the classes of a cell and see who it is; nothing is loaded or written.

        Raises:
            InputError: If its configuration is wrong, or its directory holds something else.
        """
        cli = Prepared.of(cell.run.task, cell.command)
        config = cli.config.predict
        if config.baseline:
            raise InputError("--baseline: a table has uncompressed cells of its own; leave it out")
        check_directory(cell.directory, config)
        return cls(
            cell=cell,
            command=(*cell.command, *_shared(cli, cell.directory.parent)),
            fingerprint=cli.fingerprint,
            settings={key: value for key, value in fingerprinted(config).items() if not key.startswith("compressor")},
            compressed=bool(cli.compressors()),
            processes=cli.trainer.world_size,
            overwrite=config.overwrite,
        )


def _shared(cli: Prepared, output: Path) -> Sequence[str]:
    """Options for what cells have in common, where the user has not said otherwise: encoded images."""
    given = cli.config.predict.model.init_args
    if "latent_cache" not in given or given.latent_cache is not None or not _has_vae(cli.model.backbone):
        return ()
    return "--model.latent_cache", str(output / LATENTS)


def _has_vae(backbone: Backbone) -> bool:
    named = backbone.model
    try:
        backbone.model = geometry_of(named)
        return "vae" in backbone.find(backbone.local_files_only).parts
    except InputError:
        # The run will say what is wrong with the model.
        return False
    finally:
        backbone.model = named


def look(directory: Path, fingerprint: str) -> tuple[Status, str | None, Run | None]:
    """How far a cell is, by its directory alone.

    Args:
        directory: Of the cell.
        fingerprint: Of its configuration.

    Returns:
        The status, what is missing, and the run where there are results.
    """
    try:
        if not (directory / "results.json").is_file():
            return "pending", None, None
        run = load_run(directory)
    except InputError as error:
        return "incomplete", str(error), None
    except OSError as error:
        return "incomplete", f"{directory} cannot be read: {error.strerror}", None
    if run.results.get("fingerprint") != fingerprint:
        return "pending", None, None
    missing = lacking(run.results)
    return ("incomplete" if missing else "finished"), missing, run


def baseline_of(plan: Plan, plans: Iterable[Plan]) -> Plan | None:
    """The run that differs in nothing but having no compressor, for a generation's fidelity."""
    if plan.cell.run.task != "generation" or not plan.compressed:
        return None
    return next((one for one in plans if not one.compressed and one.settings == plan.settings), None)


def reason_of(error: Exception) -> str:
    """What to say about an error on one line; of one that nobody expected, all of it on stderr."""
    if isinstance(error, InputError):
        return message_of(error)
    if isinstance(error, OSError):
        # As of a single run: the message names the file.
        return " ".join(str(error).split())
    traceback.print_exception(error, file=sys.stderr)
    return " ".join(f"{type(error).__name__}: {error}".split())
