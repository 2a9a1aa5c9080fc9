"""The race against the stages: accuracy on the same images, and evaluations, as Markdown tables.

    python benchmarks/race.py --images 512 --runs runs/race > benchmarks/results/race.md
    python benchmarks/race.py --images 512 --runs runs/race --model dit --exhaustive 192

Every number comes from ordinary `bigain predict` runs in separate directories; finished ones are read, not run again.
`--exhaustive n` also plays races at other settings over stored errors of every class at every trial, of n images of
`val`: the settings were chosen there, and the comparison is on `test`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bigain.diffusion.elimination import Elimination, staged_elimination
from bigain.diffusion.racing import Race, race_elimination
from bigain.diffusion.trials import keys_of_trials, random_order, stage_trials
from bigain.report.explain.margins import read_errors
from bigain.report.pairing import outcomes, pair
from bigain.report.statistics import Paired, difference_interval, mcnemar
from bigain.runs.results import Run, has_results, load_run

LGTM = ("--compressor", "LGTM", "--compressor.ratio", "0.5")
CELLS = {
    ("dit", "none"): ("demo_none.yaml",),
    ("unet", "none"): ("demo_unet_none.yaml",),
    ("dit", "LGTM ratio 0.5"): ("demo_none.yaml", *LGTM),
}
RULES = {"stages": (), "race": ("--model.race", "{}")}
LEVELS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
SETTINGS = [
    *(Race(error_level=level) for level in LEVELS),
    *(Race(error_level=level, scale="plain") for level in LEVELS),
    Race(first_trials=3),
    Race(look_every=2),
]
SEEDS = range(8)
HEADER = ("model", "compressor", "n", "stages %", "race %", "difference", "p", "only right", "evaluations: stages")
HEADER += ("race", "share", "s/image")
TRADE_OFF = ("rule", "evaluations", "as all evaluations %", "accuracy %", "best dropped %")


@dataclass(frozen=True)
class Folder:
    """The folder of the runs.

    Attributes:
        path: A run directory per cell and rule.
        images: Per run.
    """

    path: Path
    images: int

    def run(self, name: str, options: Sequence[str]) -> Run:
        """Return the run of that name; run it if it does not exist."""
        directory = self.path / name.replace(" ", "_")
        if not has_results(directory):
            from bigain.commands.main import main

            stdout, sys.stdout = sys.stdout, sys.stderr  # the tables alone go to standard output
            try:
                common = ("--data.images", str(self.images), "--output", str(directory))
                status = main(["predict", "--config", *options, *common, "--trainer.enable_progress_bar", "false"])
            finally:
                sys.stdout = stdout
            if status:
                sys.exit(f"{name} ended with {status}")
        return load_run(directory)


def comparison_row(model: str, method: str, stages: Run, race: Run) -> str:
    """Return a row: the race and the stages, compared image by image."""
    counts = Paired.of(*pair(outcomes(race), outcomes(stages), (str(race.path), str(stages.path))))
    low, high = difference_interval(counts)
    accuracies = [f"{100 * run.metrics['top1']['value']:.1f}" for run in (stages, race)]
    evaluations = [run.results["evaluations"]["per_image"] for run in (stages, race)]
    cells = [model, method, str(counts.n), *accuracies]
    cells += [f"{100 * counts.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", f"{mcnemar(counts):.2g}"]
    cells += [f"{counts.first} / {counts.second}", *(f"{value:.1f}" for value in evaluations)]
    cells += [f"{100 * evaluations[1] / evaluations[0]:.1f} %"]
    cells += [" / ".join(f"{run.seconds:.2f}" for run in (stages, race))]
    return f"| {' | '.join(cells)} |"


def heading(run: Run, options: argparse.Namespace) -> str:
    """Return where the numbers come from."""
    environment = run.results["environment"]
    versions = ", ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "diffusers", "lightning"))
    arguments = {name: value for name, value in vars(options).items() if value is not None and name != "runs"}
    command = " ".join(["python benchmarks/race.py", *(f"--{name} {value}" for name, value in arguments.items())])
    return (
        f"`{command}`: held-out images (`test`), stages [5, 20] / [5, 1], the race "
        f"as `--model.race '{{}}'`, seed 0, {environment['precision']} on {environment['device']}; {versions}. "
        "Difference: race minus stages, paired, 95 % interval as by `bigain compare`; only right: images that only the "
        "race, or only the stages, classify correctly. Seconds, stages and race, on a shared machine.\n"
    )


def play(errors: Tensor, ids: Sequence[str], race: Race, seed: int) -> Elimination:
    """Play a race over stored errors `(n, k, t)`, in the order of a run with this seed."""
    order = random_order(keys_of_trials(ids, errors.shape[2], seed))

    def look_up(image: Tensor, trial: Tensor, label: Tensor) -> Tensor:
        return errors[image[:, None], label, trial[:, None]]

    return race_elimination(look_up, order, errors.shape[1], race)


def trade_off(run: Run) -> Iterator[str]:
    """Yield rows: evaluations and agreement at all settings, means over seeds of the order."""
    stored = read_errors(run)
    errors, ids = torch.from_numpy(stored.errors), [str(image_id) for image_id in stored.image_id]
    label, n = torch.from_numpy(stored.label), len(ids)
    by_all_trials = errors.double().mean(2).argmin(1)
    pairs = torch.arange(n)[:, None]

    def look_up(image: Tensor, trial: Tensor, label: Tensor) -> Tensor:
        return errors[image[:, None], label, trial[:, None]]

    staged = staged_elimination(look_up, n, errors.shape[1], stage_trials([5, 20]), [5, 1])
    outcomes_of = {"stages [5, 20] / [5, 1]": [staged]}
    for race in SETTINGS:
        name = f"race {race.error_level:g}, {race.scale}, first {race.first_trials}, every {race.look_every}"
        outcomes_of[name] = [play(errors, ids, race, seed) for seed in SEEDS]
    best = {"log": errors.clamp_min(1e-30).double().log().mean(2).argmin(1), "plain": by_all_trials}
    for name, results in outcomes_of.items():
        target = best["log" if "log" in name else "plain"]
        dropped = [_best_dropped(result, target, pairs) for result in results]
        evaluations = [int((~result.errors.isnan()).sum()) / n for result in results]
        agreement = [float((result.prediction == by_all_trials).double().mean()) for result in results]
        accuracy = [float((result.prediction == label).double().mean()) for result in results]
        values = [f"{np.mean(evaluations):.1f}", *(f"{100 * np.mean(x):.2f}" for x in (agreement, accuracy, dropped))]
        yield f"| {' | '.join([name, *values])} |"


def _best_dropped(result: Elimination, best: Tensor, pairs: Tensor) -> float:
    """Return the share of images whose best class was dropped before all trials were done."""
    trials = result.errors.shape[2]
    done = (~result.errors[pairs[:, 0], best].isnan()).sum(1)
    return float(((done < trials) & (result.prediction != best)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--model", choices=["dit", "unet"], help="only this one")
    parser.add_argument("--compressor", choices=["none", "LGTM"], help="only this one")
    parser.add_argument("--exhaustive", type=int, metavar="N", help="also other settings, over N images of val")
    args = parser.parse_args()
    folder = Folder(args.runs, args.images)
    cells = {
        cell: options
        for cell, options in CELLS.items()
        if args.model in (None, cell[0]) and args.compressor in (None, cell[1].split()[0])
    }
    by_cell = {
        cell: {rule: folder.run(f"{'-'.join(cell)}-{rule}", (*options, *more)) for rule, more in RULES.items()}
        for cell, options in cells.items()
    }
    if not by_cell:
        sys.exit("no such cell")
    print(heading(next(iter(by_cell.values()))["race"], args))
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for (model, method), runs in by_cell.items():
        print(comparison_row(model, method, runs["stages"], runs["race"]))
    if args.exhaustive:
        everything = (*CELLS["dit", "none"], "--model.keep", "null", "--data.split", "val")
        run = Folder(args.runs, args.exhaustive).run(f"dit-exhaustive-{args.exhaustive}", everything)
        print(f"\nThe DiT without compression, {args.exhaustive} images of `val`, {len(SEEDS)} orders of the trials:\n")
        print(f"| {' | '.join(TRADE_OFF)} |\n|{'---|' * len(TRADE_OFF)}")
        print("\n".join(trade_off(run)))


if __name__ == "__main__":
    main()
