"""`bigain sweep`: run the cells of a table one after the other, continuing after failures."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigain.commands.parsing import Outcome
from bigain.commands.sweep.cells import Cell, cells_of, choose, launched_rank
from bigain.commands.sweep.subprocess_run import run_in_subprocess
from bigain.commands.sweep.tables import load_table
from bigain.errors import InputError

# What imports torch is imported after the first line of output.
if TYPE_CHECKING:
    from bigain.commands.sweep.plans import Plan, State


def sweep(
    table: str,
    *options: str,
    output: Path | None = None,
    dry_run: bool = False,
    shard: str | None = None,
    only: list[str] | None = None,
) -> Outcome:
    """Run every cell of a table (methods x settings x tasks), each as `bigain predict` in its own process.

    Finished cells are skipped and interrupted ones continued; a failed cell does not stop the others.

    Args:
        table: A file, or the name of a shipped table: table4, demo, demo_unet, ... (bigain list tables)
        *options: Passed on to every cell: --trainer.devices 2, --data.limit 200. Marked with a task, a dataset of the
            table, or both, they go to those cells only: --classification.data.limit 100, --coco.data.root /data/coco,
            --pets.generation.model.reference references/pets.npz
        output: Folder of the run directories; by default runs/<table>.
        dry_run: List the cells with state and cost; needs no weights and no dataset, and writes nothing.
        shard: I/N runs the I-th of N shares, I from 1 to N: one job of an array.
        only: Only these methods, as the table names them; `none` is the model without compression.

    Returns:
        Complete if every cell is finished; for a dry run, if every cell could be counted.

    Raises:
        InputError: If the table or the command line is wrong, or no cell can run at all.
    """
    loaded = load_table(table)
    folder = output or Path("runs") / loaded.name
    cells = cells_of(loaded, folder, options)
    chosen = choose(cells, only, shard)
    _tell(f"{loaded.name}: {len(chosen)} of {len(cells)} cells, in {folder}; checking their configurations")
    from bigain.commands.predict import silence_libraries
    from bigain.commands.sweep.costs import WithoutTrainer, cost_report
    from bigain.commands.sweep.plans import plans_of

    silence_libraries()
    plans, states = plans_of(chosen, *([WithoutTrainer] if dry_run else []))
    if states and not plans:
        name, state = next(iter(states.items()))
        raise InputError(f"no cell of {loaded.name} can run; {name}: {state.reason}")
    if dry_run:
        return cost_report(plans, states)
    for position, cell in enumerate(chosen, 1):
        prefix = f"[{position}/{len(chosen)}] {cell.name}"
        if cell.name in plans:
            states[cell.name] = _run(plans[cell.name], prefix)
        else:
            _tell(f"{prefix}  {states[cell.name]}")
    if not launched_rank():
        _add_fidelities(plans, cells, states)
    return _conclude({cell.name: states[cell.name] for cell in chosen}, folder)


def _run(plan: Plan, prefix: str) -> State:
    """Run a cell unless it is finished, and return its new state."""
    state = plan.state
    if state.status == "finished" and not plan.overwrite:
        _tell(f"{prefix}  finished before  {state.metric}")
        return state
    _tell(f"{prefix}  running, output in {plan.cell.log}")
    start, show = time.perf_counter(), _progress_line(prefix)
    run_in_subprocess(plan.command, plan.cell.log, plan.cell.number, show)
    show("")
    state = plan.state
    _tell(f"{prefix}  {state}  {time.perf_counter() - start:.1f} s")
    return state


def _add_fidelities(plans: Mapping[str, Plan], cells: Sequence[Cell], states: dict[str, State]) -> None:
    """Compare generated images with those of the uncompressed cell, where both exist and were not yet compared."""
    from bigain.commands.score import add_fidelity
    from bigain.commands.sweep.plans import State, plans_of, reason_of

    compressed = [plan for plan in plans.values() if plan.cell.run.task == "generation" and plan.compressed]
    uncompressed = [cell for cell in cells if cell.run.task == "generation" and cell.run.setting is None]
    # The uncompressed cell may belong to a different shard.
    elsewhere, _ = plans_of([cell for cell in uncompressed if compressed and cell.name not in plans])
    known = [*plans.values(), *elsewhere.values()]
    for plan in compressed:
        baseline, run = plan.baseline(known), plan.state.run
        if baseline is None or baseline.state.run is None or run is None:
            continue
        compared = "ssim" in run.metrics and run.metrics["ssim"]["n"] == run.results["dataset"]["images"]
        if compared or run.results["protocol"]["images"] == "none":
            continue
        try:
            add_fidelity(plan.cell.directory, baseline.cell.directory)
            _tell(f"added the fidelity of {plan.cell.name} to {baseline.cell.name}")
        except Exception as error:  # noqa: BLE001 -- as for a cell
            states[plan.cell.name] = State("incomplete", f"no fidelity: {reason_of(error)}", run)
            _tell(f"{plan.cell.name}: {states[plan.cell.name].reason}")


def _conclude(states: Mapping[str, State], folder: Path) -> Outcome:
    from bigain.report.tables import Table

    rows = [(name, state.status, state.metric, state.seconds, state.reason or "") for name, state in states.items()]
    if rows:
        _tell(Table(("cell", "state", "main metric", "seconds", "what is missing or failed"), rows, "lllrl").plain())
    counts = Counter(state.status for state in states.values())
    _tell(f"cells: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'none in this share'}")
    if any(state.run for state in states.values()):
        _tell(f"tables and figures: bigain report {folder}")
    return Outcome(complete=counts["finished"] == len(states))


def _tell(line: str) -> None:
    """Print a line at once; of several processes that a launcher started, only the first one does."""
    if not launched_rank():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _progress_line(prefix: str) -> Callable[[str], None]:
    """Return a function that shows a line of a run's output in place, on a terminal only; an empty one clears it."""

    def show(line: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{f'{prefix}  {line}'[:columns] if line else ''}\r")
        sys.stderr.flush()

    return show if sys.stderr.isatty() else lambda line: None
