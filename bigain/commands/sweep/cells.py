"""The cells of a table, and the ones a command line selects."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigain.commands.configs import options_for
from bigain.commands.sweep.tables import Sweep, SweepRun
from bigain.errors import InputError
from bigain.runs.schema import TASKS

# A dataset with such a name cannot mark options.
_SECTIONS = {"model", "data", "compressor", "trainer", "seed", "config"}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        number: Position in the table, from 0; the same in all shards and processes.
        name: `classification-pets-LGTM-ratio-0.5`.
        run: Its entry in the table.
        directory: Run directory.
        command: Arguments after `bigain`.
    """

    number: int
    name: str
    run: SweepRun
    directory: Path
    command: tuple[str, ...]

    @property
    def log(self) -> Path:
        """Output of its last attempt, in this process of the launcher."""
        suffix = f"-rank-{launched_rank()}" if launched_rank() else ""
        return self.directory.parent / "logs" / f"{self.name}{suffix}.log"


def launched_rank() -> int:
    """Return the rank that torchrun or srun gave this process, by Lightning's rule; 0 without a launcher."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return next((int(os.environ[key]) for key in keys if key in os.environ), 0)


def cells_of(sweep: Sweep, output: Path, options: Sequence[str]) -> list[Cell]:
    """Return every cell of a table, in order.

    Args:
        sweep: The table.
        output: Folder of the run directories.
        options: For all cells, or marked for a task or a dataset.

    Raises:
        InputError: If two cells have the same name.
    """
    runs = sweep.runs()
    marks = {*TASKS, *(run.dataset for run in runs)} - _SECTIONS
    cells: dict[str, Cell] = {}
    for number, run in enumerate(runs):
        name = _name(run)
        if name in cells:
            raise InputError(
                f"table {sweep.name}: two runs would be {name}; give them different methods, or a setting each"
            )
        own = options_for(options, {run.task, run.dataset}, marks)
        command = ("predict", *run.arguments(), *own, "--output", str(output / name))
        cells[name] = Cell(number, name, run, output / name, command)
    return list(cells.values())


def choose(cells: Sequence[Cell], methods: Sequence[str] | None, shard: str | None) -> list[Cell]:
    """Return the cells of some methods, or of these the share of a shard.

    Args:
        cells: All cells of a table.
        methods: As the table names them, in any case; None selects all.
        shard: `3/16` selects every 16th from the third on; None selects all.

    Raises:
        InputError: If the table has no such method, or the shard is malformed.
    """
    known = {cell.run.method.lower(): cell.run.method for cell in cells}
    unknown = [method for method in methods or () if method.lower() not in known]
    if unknown:
        raise InputError(f"--only: the table has no method {unknown[0]!r}; it has {', '.join(known.values())}")
    wanted = set(known) if methods is None else {method.lower() for method in methods}
    chosen = [cell for cell in cells if cell.run.method.lower() in wanted]
    if shard is None:
        return chosen
    match = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/16, not {shard!r}")
    return chosen[int(match[1]) - 1 :: int(match[2])]


def _name(run: SweepRun) -> str:
    parts = [run.task, run.dataset, run.method]
    if run.setting_name is not None:
        parts += [run.setting_name, f"{run.setting:g}"]
    # Shells would expand `ToMe[SA+CA]`.
    return "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts)
