"""`bigain sweep`: run the cells of a table one after the other, whatever becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from bigain.commands.arguments import Parser
from bigain.commands.predict import predict, quieten
from bigain.commands.score import add_fidelity
from bigain.commands.sweep.apart import clear_memory, run_apart
from bigain.commands.sweep.cells import Cell, Shard, cells_of, choose
from bigain.commands.sweep.costs import costs_told
from bigain.commands.sweep.ledger import Entry, Ledger
from bigain.commands.sweep.plans import Plan, Status, baseline_of, look, reason_of
from bigain.commands.sweep.tables import load_table
from bigain.errors import InputError
from bigain.runs.results import Run

Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for.

    Attributes:
        table: Name of the table.
        output: Folder of the sweep.
        every: All cells of the table.
        chosen: Those to do.
        shard: None for all.
        dry_run: Whether to tell costs only.
    """

    table: str
    output: Path
    every: Sequence[Cell]
    chosen: Sequence[Cell]
    shard: Shard | None
    dry_run: bool


def sweep(args: Sequence[str], tell: Tell) -> bool:
    """Run `bigain sweep`.

    Args:
        args: Command line after `sweep`.
        tell: Called with each line for the user, as soon as there is one.

    Returns:
        Whether every cell is finished and lacks nothing; of a dry run, whether every cell could be counted
        and none is refused.

    Raises:
        InputError: If the table or the command line is wrong, or no cell can run at all.
    """
    quieten()
    asked = _parse(args)
    if asked.dry_run:
        told, complete = costs_told(asked.chosen)
        tell(told)
        return complete
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return _Sweep(asked, tell if first else lambda line: None, first).run()


def _parse(args: Sequence[str]) -> _Asked:
    parser = Parser(prog="bigain sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--shard")
    parser.add_argument("--only", nargs="+")
    if not args or args[0].startswith("-"):
        raise InputError("expected `bigain sweep TABLE [options]` with a file or the name of a shipped table")
    table = load_table(args[0])
    given, options = parser.parse_known_args(args[1:])
    if options and not options[0].startswith("-"):
        raise InputError(f"{options[0]!r} belongs to no option; a sweep is of one table; see bigain sweep --help")
    shard = None if given.shard is None else Shard.parse(given.shard)
    output = given.output or Path("runs") / table.name
    every = cells_of(table, output, options)
    return _Asked(table.name, output, every, choose(every, given.only, shard), shard, given.dry_run)


class _Sweep:
    """One sweep, or one shard of it."""

    def __init__(self, asked: _Asked, tell: Tell, first: bool) -> None:
        """Set it up.

        Args:
            asked: What to do.
            tell: As for `sweep`.
            first: Whether this process is the one that writes what is common to all.
        """
        self.asked = asked
        self.tell = tell
        self.first = first
        self.usable = True
        self.ledger = Ledger(asked.output, asked.table, asked.chosen, asked.shard, first)

    def run(self) -> bool:
        """Run what is not finished.

        Raises:
            InputError: If no cell can run at all, or the state cannot be written.
        """
        plans = self._plan()
        self.ledger.save()
        for position, cell in enumerate(self.asked.chosen, 1):
            entry = self._turn(plans.get(cell.name), cell)
            self.ledger.save()
            self.tell(f"[{position}/{len(self.asked.chosen)}] {_line(entry)}")
        if self.first:
            self._add_fidelities(plans)
            self.ledger.save()
        return self._conclude()

    def _plan(self) -> dict[str, Plan]:
        """The cells whose configuration is in order; of the others the ledger says what is wrong."""
        plans: dict[str, Plan] = {}
        for cell in self.asked.chosen:
            try:
                plans[cell.name] = Plan.of(cell)
            except Exception as error:  # noqa: BLE001 -- classes of a configuration may be the user's own
                self.ledger.note(cell.name, "failed", error=reason_of(error))
        refused = [entry for entry in self.ledger.entries.values() if entry.status == "failed"]
        if refused and not plans:
            raise InputError(f"no cell of {self.asked.table} can run; {refused[0].cell}: {refused[0].error}")
        return plans

    def _turn(self, plan: Plan | None, cell: Cell) -> Entry:
        """Do one cell, unless it is finished or refused."""
        if plan is None:
            return self.ledger.entries[cell.name]
        status, missing, run = look(cell.directory, plan.fingerprint)
        if status == "finished" and run is not None and not plan.overwrite:
            return self.ledger.note_finished(cell.name, run)
        began = time.perf_counter()
        failure = self._attempt(plan)
        seconds = time.perf_counter() - began
        if failure is not None:
            return self.ledger.note(cell.name, "failed", error=failure, seconds=seconds)
        status, missing, run = look(cell.directory, plan.fingerprint)
        if status == "pending":
            status, missing = "failed", "it left no results"
        return self.ledger.note(cell.name, status, run, missing, seconds)

    def _attempt(self, plan: Plan) -> str | None:
        """Run a cell and say why it failed, if it did."""
        try:
            if plan.processes == 1 and self.usable:
                predict(plan.command)
            else:
                run_apart(plan.command, self._log(plan.cell), plan.cell.number)
        except Exception as error:  # noqa: BLE001 -- whatever became of one cell, the others have to run
            return reason_of(error)
        finally:
            self.usable = clear_memory() and self.usable
        return None

    def _log(self, cell: Cell) -> Path:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        return self.asked.output / "logs" / f"{cell.name}{f'-rank-{rank}' if rank else ''}.log"

    def _add_fidelities(self, plans: Mapping[str, Plan]) -> None:
        """Compare generated images with those of the uncompressed cell, wherever both are there and it was not done."""
        known = dict(plans)
        generating = [plan for plan in plans.values() if plan.cell.run.task == "generation" and plan.compressed]
        # The uncompressed cell may be of another shard.
        for cell in self.asked.every if generating else ():
            if cell.name not in known and cell.run.task == "generation" and cell.run.setting is None:
                try:
                    known[cell.name] = Plan.of(cell)
                except Exception as error:  # noqa: BLE001 -- as in `_plan`
                    self.tell(f"no fidelity to {cell.name}: {reason_of(error)}")
        for plan in generating:
            baseline = baseline_of(plan, known.values())
            _, _, run = look(plan.cell.directory, plan.fingerprint)
            if baseline is None or run is None or _has_fidelity(run):
                continue
            if look(baseline.cell.directory, baseline.fingerprint)[2] is None:
                continue
            try:
                add_fidelity(plan.cell.directory, baseline.cell.directory)
                self.tell(f"fidelity of {plan.cell.name} to {baseline.cell.name} added")
            except Exception as error:  # noqa: BLE001 -- as of a cell
                self.ledger.note(plan.cell.name, "incomplete", run, f"no fidelity: {reason_of(error)}")

    def _conclude(self) -> bool:
        counts: dict[Status, int] = {"finished": 0, "incomplete": 0, "failed": 0, "pending": 0}
        for entry in self.ledger.entries.values():
            counts[entry.status] += 1
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none in this share"
        self.tell(f"cells: {told}")
        self.tell(f"state: {self.ledger.path}")
        if counts["finished"] + counts["incomplete"]:
            self.tell(f"tables and figures: bigain report {self.asked.output}")
        return counts["finished"] == len(self.ledger.entries)


def _has_fidelity(run: Run) -> bool:
    """Whether all images of a run have been compared with the uncompressed ones, or none was kept to compare."""
    compared = run.metrics.get("ssim", {}).get("n")
    return compared == run.results["dataset"]["images"] or run.results["protocol"]["images"] == "none"


def _line(entry: Entry) -> str:
    refused = entry.status == "failed" and entry.seconds is None
    told = [entry.cell, "refused" if refused else f"{entry.status} before" if entry.before else entry.status]
    if entry.metric is not None and entry.value is not None:
        told.append(f"{entry.metric} {entry.value:.4g}")
    if entry.seconds is not None:
        told.append(f"{entry.seconds:.1f} s")
    return "  ".join(told) + (f"\n    {entry.error}" if entry.error else "")
