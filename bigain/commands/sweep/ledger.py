"""The state of all cells in one file, rewritten whole after every cell."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bigain.commands.sweep.cells import Cell, Shard
from bigain.commands.sweep.plans import Status
from bigain.errors import InputError
from bigain.runs.files import replace_file
from bigain.runs.results import Run


@dataclass
class Entry:
    """One line of the file.

    Attributes:
        cell: Name.
        directory: Of its run.
        status: `pending`, `finished`, `incomplete` (something that was asked for is missing) or `failed`.
        metric: The main one, e.g. `top1`.
        value: Its value, as in `results.json`.
        seconds: Seconds that this command spent on it; of a cell that was finished before, those of its last session.
        error: What failed or is missing.
        before: Whether an earlier command had finished it.
    """

    cell: str
    directory: str
    status: Status = "pending"
    metric: str | None = None
    value: float | None = None
    seconds: float | None = None
    error: str | None = None
    before: bool = False


class Ledger:
    """Keeps `sweep.json` and `sweep.csv` of a sweep, or `sweep-3-of-16.*` of a shard."""

    def __init__(self, output: Path, table: str, cells: Sequence[Cell], shard: Shard | None, writes: bool) -> None:
        """Begin with every cell pending.

        Args:
            output: Folder of the sweep.
            table: Name of the table.
            cells: Those of this sweep or shard.
            shard: None for all.
            writes: Whether this process is the one that writes.
        """
        suffix = "" if shard is None else f"-{shard.index}-of-{shard.count}"
        self.path = output / f"sweep{suffix}.json"
        self.entries = {cell.name: Entry(cell.name, str(cell.directory)) for cell in cells}
        self._table = table
        self._writes = writes

    def note(
        self, name: str, status: Status, run: Run | None = None, error: str | None = None, seconds: float | None = None
    ) -> Entry:
        """Record how a cell stands; `save` writes it."""
        entry = self.entries[name]
        entry.status, entry.error = status, error
        entry.seconds = entry.seconds if seconds is None else round(seconds, 3)
        entry.before = False
        if run is not None:
            entry.metric = run.main_metric
            entry.value = None if entry.metric is None else run.metrics[entry.metric]["value"]
        return entry

    def note_finished(self, name: str, run: Run) -> Entry:
        """Record a cell that an earlier command had finished."""
        entry = self.note(name, "finished", run, seconds=run.results["timing"]["seconds"])
        entry.before = True
        return entry

    def save(self) -> None:
        """Write both files.

        Raises:
            InputError: If they cannot be written.
        """
        if not self._writes:
            return
        lines = [asdict(entry) for entry in self.entries.values()]
        text = json.dumps({"table": self._table, "cells": lines}, indent=2) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, lambda path: path.write_text(text, encoding="utf-8"))
            replace_file(self.path.with_suffix(".csv"), lambda path: self._write_csv(path))
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error}; choose another --output") from error

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Entry.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(entry) for entry in self.entries.values())
