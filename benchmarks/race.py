"""The race against the stages: accuracy on the same images, and evaluations, as Markdown tables.

    python benchmarks/race.py --images 512 --runs runs/race > benchmarks/results/race.md

Every number comes from ordinary `bigain predict` runs in separate directories; finished ones are read, not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
HEADER = ("model", "compressor", "n", "stages %", "race %", "difference", "p", "only right", "evaluations: stages")
HEADER += ("race", "share", "s/image")


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
    low, high, _ = difference_interval(counts)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--model", choices=["dit", "unet"], help="only this one")
    parser.add_argument("--compressor", choices=["none", "LGTM"], help="only this one")
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


if __name__ == "__main__":
    main()
