"""The cells of a table: where each one's run is, and which are chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigain.commands.sweep.tables import Sweep, SweepRun
from bigain.errors import InputError
from bigain.runs.configuration import TASKS, options_for

# Sections of a configuration; a dataset of such a name could not be told from them.
_SECTIONS = {"model", "data", "compressor", "trainer", "seed", "config"}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        number: Position in the table, from 0; the same in all shards and processes.
        name: `classification-pets-LGTM-ratio-0.5`.
        run: What the table says.
        directory: Where its results are.
        command: As after `bigain`.
    """

    number: int
    name: str
    run: SweepRun
    directory: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` shares, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/16`.

        Raises:
            InputError: If it is something else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/16, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def takes(self, position: int) -> bool:
        """Whether the cell at this position, from 0, is of the share; neighbours go to different ones."""
        return position % self.count == self.index - 1


def cells_of(sweep: Sweep, output: Path, options: Sequence[str]) -> list[Cell]:
    """Every cell of a table, in its order.

    Args:
        sweep: The table.
        output: Folder of the cells' directories.
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
                f"table {sweep.name}: two runs would be {name}; give them other methods, or a setting each that tells "
                "them apart"
            )
        chosen = options_for(options, {run.task, run.dataset}, marks)
        command = ("predict", *run.arguments(), *chosen, "--output", str(output / name))
        cells[name] = Cell(number, name, run, output / name, command)
    return list(cells.values())


def choose(cells: Sequence[Cell], methods: Sequence[str] | None, shard: Shard | None) -> list[Cell]:
    """The cells of some methods, and of these the share of a shard.

    Args:
        cells: All of a table.
        methods: As the table names them, in any case; None takes all.
        shard: None takes all.

    Raises:
        InputError: If the table lacks a method.
    """
    known = {cell.run.method.lower(): cell.run.method for cell in cells}
    unknown = [method for method in methods or () if method.lower() not in known]
    if unknown:
        raise InputError(f"--only: the table has no method {unknown[0]!r}; it has {', '.join(known.values())}")
    wanted = set(known) if methods is None else {method.lower() for method in methods}
    left = [cell for cell in cells if cell.run.method.lower() in wanted]
    return [cell for position, cell in enumerate(left) if shard is None or shard.takes(position)]


def _name(run: SweepRun) -> str:
    parts = [run.task, run.dataset, run.method]
    if run.setting_name is not None:
        parts += [run.setting_name, f"{run.setting:g}"]
    # `ToMe[SA+CA]` is a name that shells take for a pattern.
    return "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts)
