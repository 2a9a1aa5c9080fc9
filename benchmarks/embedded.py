"""All methods on the embedded models: class, shape and fill accuracy with 95 % intervals, as a Markdown table.

    python benchmarks/embedded.py --images 128 --runs runs/embedded > benchmarks/results/embedded.md

Every cell is an ordinary `bigain predict` run in a directory of its own; finished cells are read, not run again.
`--part 1/2` and `--part 2/2` share the work between two processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

RATIOS = (0.3, 0.5, 0.7)
DESTINATIONS = ("cell", "released", "first", "random", "redrawn")


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    model: str
    method: str
    setting: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method}-{self.setting}".replace(" ", "_").replace("/", "_")


def merger(model: str, method: str, ratio: float, **options: str) -> Cell:
    extra = [part for name, value in options.items() for part in (f"--compressor.{name}", value)]
    setting = " ".join([*options.values(), f"ratio {ratio}"])
    return Cell(model, method, setting, ("--compressor", method, "--compressor.ratio", str(ratio), *extra))


def cam(model: str, ratio: float) -> Cell:
    options = ("--compressor", "CAM", "--compressor.inner", "LGTM", "--compressor.inner.ratio", str(ratio))
    return Cell(model, "CAM", f"LGTM ratio {ratio}", options)


def downsampler(model: str, method: str, factor: int, alpha: float | None = None) -> Cell:
    options = ("--compressor", method, "--compressor.factor", str(factor))
    if alpha is None:
        return Cell(model, method, f"factor {factor}", options)
    return Cell(model, method, f"factor {factor} alpha {alpha}", (*options, "--compressor.alpha", str(alpha)))


def cells() -> list[Cell]:
    none = ("--compressor", "null")
    rows = [Cell("dit", "none", "", none), Cell("unet", "none", "", none)]
    rows += [merger("unet", "ToMe", 0.5), merger("unet", "LGTM", 0.5), downsampler("unet", "IEKVD", 2, 0.9)]
    for ratio in RATIOS:
        rows.append(merger("dit", "ToMe", ratio))
        rows += [merger("dit", "LGTM", ratio, destination=destination) for destination in DESTINATIONS]
        rows += [cam("dit", ratio), merger("dit", "ABM", ratio), merger("dit", "SiTo", ratio)]
    for factor in (2, 4):
        rows += [downsampler("dit", "ToDo", factor), downsampler("dit", "AveragePool", factor)]
        rows.append(downsampler("dit", "IEKVD", factor, 0.1))
    return rows


def run(cell: Cell, images: int, folder: Path) -> None:
    from bigain.cli import main

    config = "demo_none.yaml" if cell.model == "dit" else "demo_unet_none.yaml"
    arguments = ["predict", "--config", config, "--data.images", str(images), "--output", str(folder / cell.name)]
    status = main([*arguments, "--trainer.enable_progress_bar", "false", *cell.options])
    if status:
        sys.exit(f"{cell.name} ended with {status}")


def percent(estimate: dict[str, float]) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def row(cell: Cell, folder: Path) -> str:
    results = json.loads((folder / cell.name / "results.json").read_text())
    shown = [percent(results["metrics"][name]) for name in ("top1", "shape", "fill")]
    tokens = sorted({(site["tokens_in"], site["tokens_out"]) for site in results["sites"]})
    flow = ", ".join(f"{before} -> {after}" for before, after in tokens) or "-"
    gflops = f"{results['flops']['gflops_per_evaluation']:.3f}"
    seconds = f"{results['timing']['seconds_per_image']:.2f}"
    return f"| {' | '.join([cell.model, cell.method, cell.setting or '-', flow, *shown, gflops, seconds])} |"


def heading(cell: Cell, images: int, folder: Path) -> str:
    """Where the numbers come from, read from the first run."""
    found = json.loads((folder / cell.name / "results.json").read_text())["environment"]
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "diffusers", "lightning"))
    return (
        f"`python benchmarks/embedded.py --images {images}`: {images} held-out images (`test`), trials [5, 20], keep "
        f"[5, 1], seed 0, {found['precision']} on {found['device']}; {versions}. 95 % Wilson intervals.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="i/n: do every n-th cell, no table")
    parser.add_argument("--model", choices=["dit", "unet"], help="only this one")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    wanted = [cell for cell in cells() if args.model in (None, cell.model)]
    for cell in wanted[part - 1 :: parts]:
        if not (args.runs / cell.name / "results.json").is_file():
            stdout, sys.stdout = sys.stdout, sys.stderr  # the table alone goes to standard output
            try:
                run(cell, args.images, args.runs)
            finally:
                sys.stdout = stdout
    if parts > 1:
        return
    print(heading(wanted[0], args.images, args.runs))
    print("| model | method | setting | tokens | class % | shape % | fill % | GFLOPs/evaluation | s/image |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in wanted:
        print(row(cell, args.runs))


if __name__ == "__main__":
    main()
