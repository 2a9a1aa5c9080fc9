"""`bigain sweep`: run the cells of a table one after the other, continuing after failures."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigain.commands.arguments import Parser
from bigain.commands.sweep.cells import Cell, cells_of, choose, launched_rank
from bigain.commands.sweep.subprocess_run import run_in_subprocess
from bigain.commands.sweep.tables import load_table
from bigain.errors import InputError

# What imports torch comes after the first line of output.
if TYPE_CHECKING:
    from bigain.commands.sweep.plans import Plan, State

Tell = Callable[[str], None]


def sweep(args: Sequence[str], tell: Tell) -> bool:
    """Run `bigain sweep`.

    Args:
        args: Command line after `sweep`.
        tell: Called with each line for the user as soon as it is known.

    Returns:
        Whether every cell is finished; of a dry run, whether every cell could be counted and none is refused.

    Raises:
        InputError: If the table or the command line is wrong, or no cell can run at all.
    """
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
        raise InputError(f"{options[0]!r} belongs to no option; a sweep has one table; see bigain sweep --help")
    output = given.output or Path("runs") / table.name
    cells = cells_of(table, output, options)
    chosen = choose(cells, given.only, given.shard)
    if given.dry_run:
        from bigain.commands.sweep.costs import cost_report

        text, complete = cost_report(chosen)
        tell(text)
        return complete
    tell = (lambda line: None) if launched_rank() else tell
    return _run(table.name, cells, chosen, output, tell)


def _run(table: str, cells: Sequence[Cell], chosen: Sequence[Cell], output: Path, tell: Tell) -> bool:
    tell(f"{table}: {len(chosen)} of {len(cells)} cells, in {output}; checking their configurations")
    from bigain.commands.predict import silence_libraries

    silence_libraries()
    states: dict[str, State] = {}
    plans = _plans(chosen, states)
    if states and not plans:
        name, state = next(iter(states.items()))
        raise InputError(f"no cell of {table} can run; {name}: {state.reason}")
    for position, cell in enumerate(chosen, 1):
        prefix = f"[{position}/{len(chosen)}] {cell.name}"
        if cell.name not in plans:
            tell(f"{prefix}  {_described(states[cell.name])}")
            continue
        plan = plans[cell.name]
        state = plan.state
        if state.status == "finished" and not plan.overwrite:
            states[cell.name] = state
            tell(f"{prefix}  finished before  {_described(state).partition('  ')[2]}")
            continue
        tell(f"{prefix}  running, output in {cell.log}")
        start, show = time.perf_counter(), _progress_line(prefix)
        run_in_subprocess(plan.command, cell.log, cell.number, show)
        show("")
        states[cell.name] = plan.state
        tell(f"{prefix}  {_described(plan.state)}  {time.perf_counter() - start:.1f} s")
    if not launched_rank():
        _add_fidelities(plans, cells, states, tell)
    return _conclude({cell.name: states[cell.name] for cell in chosen}, output, tell)


def _plans(cells: Sequence[Cell], refused: dict[str, State]) -> dict[str, Plan]:
    """Return the plans of the cells whose configuration is valid; `refused` receives the others."""
    from bigain.commands.sweep.plans import Plan, State, reason_of

    plans = {}
    for cell in cells:
        try:
            plans[cell.name] = Plan.of(cell)
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            refused[cell.name] = State("refused", reason_of(error))
    return plans


def _add_fidelities(plans: Mapping[str, Plan], cells: Sequence[Cell], states: dict[str, State], tell: Tell) -> None:
    """Compare generated images with those of the uncompressed cell, where both exist and were not yet compared."""
    from bigain.commands.score import add_fidelity
    from bigain.commands.sweep.plans import State, reason_of

    compressed = [plan for plan in plans.values() if plan.cell.run.task == "generation" and plan.compressed]
    # The uncompressed cell may belong to a different shard.
    missing = [
        cell
        for cell in cells
        if cell.name not in plans and cell.run.task == "generation" and cell.run.setting is None and compressed
    ]
    known = [*plans.values(), *_plans(missing, {}).values()]
    for plan in compressed:
        baseline, run = plan.baseline(known), plan.state.run
        if baseline is None or baseline.state.run is None or run is None:
            continue
        compared = run.metrics["ssim"]["n"] if "ssim" in run.metrics else None
        if compared == run.results["dataset"]["images"] or run.results["protocol"]["images"] == "none":
            continue
        try:
            add_fidelity(plan.cell.directory, baseline.cell.directory)
            tell(f"added the fidelity of {plan.cell.name} to {baseline.cell.name}")
        except Exception as error:  # noqa: BLE001 -- as for a cell
            states[plan.cell.name] = State("incomplete", f"no fidelity: {reason_of(error)}", run)
            tell(f"{plan.cell.name}: {states[plan.cell.name].reason}")


def _conclude(states: Mapping[str, State], output: Path, tell: Tell) -> bool:
    from bigain.report.tables import Table

    rows = []
    for name, state in states.items():
        seconds = f"{state.run.results['timing']['seconds']:.1f}" if state.run else ""
        rows.append((name, state.status, _main_metric(state), seconds, state.reason or ""))
    if rows:
        tell(Table(("cell", "state", "main metric", "seconds", "what is missing or failed"), rows, "lllrl").plain())
    counts = Counter(state.status for state in states.values())
    tell(f"cells: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'none in this share'}")
    if any(state.run for state in states.values()):
        tell(f"tables and figures: bigain report {output}")
    return counts["finished"] == len(states)


def _described(state: State) -> str:
    """Return status, main metric and reason on one line."""
    return "  ".join(filter(None, (state.status, _main_metric(state), state.reason)))


def _main_metric(state: State) -> str:
    name = state.run.main_metric if state.run is not None else None
    return f"{name} {state.run.metrics[name]['value']:.4g}" if state.run is not None and name is not None else ""


def _progress_line(prefix: str) -> Callable[[str], None]:
    """Return a function that shows a line of a run's output in place, on a terminal only; an empty one clears it."""

    def show(line: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{f'{prefix}  {line}'[:columns] if line else ''}\r")
        sys.stderr.flush()

    return show if sys.stderr.isatty() else lambda line: None
