"""Every method on the embedded models: sweeps, their reports, comparisons in pairs, and why, in Markdown.

    python benchmarks/embedded.py --runs runs --reports benchmarks/results/embedded

Runs are those of `bigain sweep embedded`, `embedded_pairs`, `embedded_unet` and `embedded_unet_pairs` in
`RUNS/<table>`, with their frequency responses: finished ones are read, not run again, and several processes may
share the work beforehand, each with `--shard I/N` of `bigain sweep embedded --output RUNS/embedded` and the option that
is `MEASURED` below. The cells of a `_pairs` table are some of the table's before it on more images, and copies of those
go on with `--extend true`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from bigain.commands.main import main as bigain

# ToMe at ratio 0.5 as in `embedded_unet`, with merged tokens weighted by the number of tokens they stand for.
CONTROL = "classification-shapes-ToMe-proportional-ratio-0.5"
CONTROL_OPTIONS = [
    "--compressor",
    "ToMe",
    "--compressor.proportional",
    "true",
    "--compressor.ratio",
    "0.5",
    "--compressor.where.max_stride",
    "4",
    "--data.images",
    "512",
]
MEASURED = "--trainer.callbacks+=bigain.callbacks.FrequencyResponse"
NONE = "classification-shapes-none"
COUNTED = "embedded_grid"
HEADLINE = ("ToMe-random", "LGTM-cell", "SiTo", "ToDo", "AveragePool", "IEKVD")
# Base first. ToMe with random, first and redrawn destinations is LGTM with them.
MERGERS = ("ToMe-random", "LGTM-cell", "LGTM-released", "ToMe-first", "ToMe-redrawn")
KEYS = ("ToDo", "AveragePool", "IEKVD")
# Which methods are compared with each other at which setting, by table.
SWEPT: dict[str, dict[str, Sequence[str]]] = {
    "embedded": {"ratio-0.3": MERGERS, "ratio-0.5": MERGERS},
    "embedded_pairs": {"ratio-0.7": MERGERS, "factor-2": KEYS, "factor-4": KEYS},
    "embedded_unet": {
        "ratio-0.3": MERGERS,
        "ratio-0.5": MERGERS,
        "ratio-0.7": MERGERS,
        "factor-2": KEYS,
        "factor-4": KEYS,
    },
    "embedded_unet_pairs": {"factor-4": ("ToDo", "AveragePool")},
}


def output_of(*args: str | Path) -> str:
    """Return what `bigain ARGS` prints; a failure ends the benchmark."""
    command = [str(arg) for arg in args]
    print("bigain", *command, file=sys.stderr)
    with redirect_stdout(StringIO()) as out:
        status = bigain(command)
    if status:
        raise SystemExit(f"bigain {' '.join(command)} ended with {status}; what is finished is kept")
    return out.getvalue().strip()


def compare_methods(root: Path, families: Mapping[str, Sequence[str]]) -> str:
    """Compare methods at each setting with the first of them; each family has its own correction."""
    return "\n\n".join(
        output_of("compare", *(root / f"classification-shapes-{method}-{setting}" for method in methods))
        for setting, methods in families.items()
    )


def explain_methods(root: Path, picture: Path) -> str:
    """Theorem 1's quantities of the main methods at ratio 0.5 or factor 2."""
    runs = [run for method in HEADLINE for run in root.glob(f"classification-shapes-{method}-*") if is_half(run)]
    return output_of("explain", *runs, "--baseline", root / NONE, "--output", picture)


def compare_control(runs: Path) -> str:
    """Compare ToMe with the control on the U-Net."""
    control = runs / "embedded_unet_control" / CONTROL
    quiet = ("--trainer.enable_progress_bar", "false", "--inspect", "0")
    output_of("predict", "--config", "demo_unet_none.yaml", "--output", control, *CONTROL_OPTIONS, *quiet)
    return output_of("compare", runs / "embedded_unet" / "classification-shapes-ToMe-random-ratio-0.5", control)


def is_half(run: Path) -> bool:
    return run.name.endswith(("-ratio-0.5", "-factor-2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--reports", type=Path, required=True, help="folder of reports and figures")
    args = parser.parse_args()
    for table, families in SWEPT.items():
        root = args.runs / table
        output_of(
            "sweep", table, "--output", root, "--trainer.enable_progress_bar", "false", "--extend", "true", MEASURED
        )
        output_of("report", root, "--output", args.reports / table)
        print(f"## `bigain sweep {table}`\n\nAll numbers and figures: [report]({table}/report.md).\n")
        print(f"```\n{compare_methods(root, families)}\n```\n")
        if (root / NONE).is_dir():
            print(f"```\n{explain_methods(root, args.reports / table)}\n```\n")
    control = compare_control(args.runs)
    print(f"## Merged tokens weighted by the number of tokens they stand for\n\n```\n{control}\n```\n")
    total = next(line for line in output_of("sweep", COUNTED, "--dry-run").splitlines() if " cells, " in line)
    print(f"## `bigain sweep {COUNTED} --dry-run`\n\n```\n{total}\n```")


if __name__ == "__main__":
    main()
