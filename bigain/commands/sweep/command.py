"""`bigain sweep`: run the cells of a table one after the other, continuing after failures."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigain.commands.options import checked
from bigain.commands.parsing import Outcome
from bigain.commands.predict import silence_libraries
from bigain.commands.sweep.subprocess_run import claimed, run_in_subprocess
from bigain.commands.sweep.tables import choose, load_table, marked_options
from bigain.errors import InputError
from bigain.runs.numbers import counted

# What imports torch is imported after the first line of output.
if TYPE_CHECKING:
    from bigain.commands.sweep.plans import Plan


def sweep(
    table: str,
    *options: str,
    output: Path | None = None,
    dry_run: bool = False,
    shard: str | None = None,
    only: list[str] | None = None,
) -> Outcome:
    """Run every cell of a table (methods x settings x tasks), each as `bigain predict` in its own process.

    Finished cells are skipped and interrupted ones continued; a failed cell does not stop the others. Cells that
    another command is doing are passed over.

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
        Complete if every cell is finished or not applicable; for a dry run, if these could be counted.

    Raises:
        InputError: If the table or the command line is wrong, no cell can run at all, or several processes sweep.
    """
    # In an interactive allocation, by Lightning's rule, SLURM has launched nothing.
    launched = 1 if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") else os.environ.get("SLURM_NTASKS", 1)
    processes = int(os.environ.get("WORLD_SIZE", launched))
    if processes > 1:
        raise InputError(
            f"{processes} processes were launched, but bigain sweep is one: its cells take --trainer.devices, and the "
            "jobs of an array --shard"
        )
    cells, name = load_table(table), Path(table).stem
    folder = output or Path("runs") / name
    chosen = choose(cells, only, shard)
    for cell in chosen:
        checked(["predict", *marked_options(cell, cells, options)])
    _print(f"{name}: {len(chosen)} of {counted(len(cells), 'cell')}, in {folder}; checking their configurations")
    from tqdm import tqdm

    from bigain.commands.lightning_cli import Prepared, WithoutTrainer
    from bigain.commands.sweep.costs import cost_report
    from bigain.commands.sweep.plans import Plan

    silence_libraries()
    # Costs do not depend on the devices of this machine.
    kind, progress = WithoutTrainer if dry_run else Prepared, tqdm(chosen, "cells", leave=False, disable=None)
    plans = [Plan(cell, folder, marked_options(cell, cells, options), kind) for cell in progress]
    if plans and all(plan.status == "refused" for plan in plans):
        raise InputError(f"no cell of {name} can run; {plans[0].cell.name}: {plans[0].reason}")
    if dry_run:
        return cost_report(plans)
    for position, plan in enumerate(plans, 1):
        _run(plan, f"[{position}/{len(plans)}] {plan.cell.name}")
    _add_fidelities(plans, [folder / cell.name for cell in cells if cell.setting is None])
    return _summarise(plans, folder)


def _run(plan: Plan, prefix: str) -> None:
    """Run a cell unless it is finished or refused, or another command is doing it."""
    if plan.prepared is None:
        _print(f"{prefix}  {plan}")
        return
    with claimed(plan.directory, plan.log) as free:
        if not free:
            plan.status, plan.reason, plan.run = "elsewhere", "another command is doing it", None
            _print(f"{prefix}  {plan}")
            return
        plan.read_state()
        if plan.status == "finished" and not plan.prepared.config.predict.overwrite:
            _print(f"{prefix}  finished before  {plan.metric}")
            return
        _print(f"{prefix}  running, output in {plan.log}")
        start, show = time.perf_counter(), _progress_line(prefix)
        run_in_subprocess(plan.command, plan.log, show)
        show("")
        plan.read_state()
        _print(f"{prefix}  {plan}  {time.perf_counter() - start:.1f} s")


def _add_fidelities(plans: Sequence[Plan], uncompressed: Sequence[Path]) -> None:
    """Compare images or features with those of the matching run among `uncompressed`, where both exist."""
    from bigain.commands.sweep.plans import reason_of
    from bigain.runs.results import Run, load_run
    from bigain.tasks.scoring import add_baseline, has_baseline

    def settings(run: Run) -> dict[str, Any]:
        return {key: value for key, value in run.settings.items() if not key.startswith("compressor")}

    baselines = []
    for directory in uncompressed:
        with suppress(InputError, OSError):
            baselines.append(load_run(directory))
    for plan in plans:
        run = plan.run
        if not run or not run.compressors or not has_baseline(run.results):
            continue
        baseline = next((b for b in baselines if not b.compressors and settings(b) == settings(run)), None)
        compared = run.metrics.get("ssim") or run.metrics.get("cosine") or {"n": 0}
        if baseline is None or compared["n"] == run.results["dataset"]["images"]:
            continue
        try:
            add_baseline(run.path, baseline.path)
            _print(f"added the fidelity of {plan.cell.name} to {baseline.path.name}")
        except Exception as error:  # noqa: BLE001 -- as for a cell
            plan.status, plan.reason = "incomplete", f"no fidelity: {reason_of(error)}"
            _print(f"{plan.cell.name}: {plan.reason}")


def _summarise(plans: Sequence[Plan], folder: Path) -> Outcome:
    from bigain.report.tables import Table

    if plans:
        seconds = [f"{plan.run.results['timing']['seconds']:.1f}" if plan.run else "" for plan in plans]
        rows = [(p.cell.name, p.status, p.metric, s, p.reason or "") for p, s in zip(plans, seconds, strict=True)]
        _print(Table(("cell", "state", "main metric", "seconds", "what is missing or failed"), rows, "lllrl").plain())
    counts = Counter(plan.status for plan in plans)
    _print(f"cells: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'none in this share'}")
    if any(plan.run for plan in plans):
        _print(f"tables and figures: bigain report {folder}")
    return Outcome(complete=counts["finished"] + counts["n/a"] == len(plans))


def _print(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _progress_line(prefix: str) -> Callable[[str], None]:
    """Return a function that shows a line of a run's output in place, on a terminal only; an empty one clears it."""

    def show(line: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{f'{prefix}  {line}'[:columns] if line else ''}\r")
        sys.stderr.flush()

    return show if sys.stderr.isatty() else lambda line: None
