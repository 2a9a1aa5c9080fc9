"""Every method on the embedded models: sweeps, their reports, comparisons in pairs, and why, in Markdown.

    python benchmarks/embedded.py --runs runs --reports benchmarks/results/embedded

Runs are those of `bigain sweep embedded` and `embedded_unet` in `RUNS/<table>`, with their frequency responses: what is
finished there is read, not run again, and several processes may share the work beforehand, each with a `--shard I/N` of
`bigain sweep embedded --output RUNS/embedded --trainer.callbacks+=bigain.callbacks.FrequencyResponse`.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from bigain.cli import main as bigain

RATIOS = (0.3, 0.5, 0.7)
FACTORS = (2, 4)
MEASURED = "--trainer.callbacks+=bigain.callbacks.FrequencyResponse"
SWEPT = ("embedded", "embedded_unet")
COUNTED = "embedded_grid"
HEADLINE = ("ToMe-random", "LGTM-cell", "SiTo", "ToDo", "AveragePool", "IEKVD")
# Base first. ToMe with random, first and redrawn destinations is LGTM with them.
MERGERS = ("ToMe-random", "LGTM-cell", "LGTM-released", "ToMe-first", "ToMe-redrawn")
KEYS = ("ToDo", "AveragePool", "IEKVD")


def said(*args: str | Path) -> str:
    """What `bigain ARGS` prints; ends the benchmark where it fails."""
    command = [str(part) for part in args]
    print("bigain", *command, file=sys.stderr)
    with redirect_stdout(StringIO()) as out:
        status = bigain(command)
    if status:
        raise SystemExit(f"bigain {' '.join(command)} ended with {status}; what is finished is kept")
    return out.getvalue().strip()


def compared(root: Path) -> str:
    """Methods of one kind at one setting with the first of them, each comparison with a correction of its own."""
    families = [(MERGERS, f"ratio-{ratio}") for ratio in RATIOS] + [(KEYS, f"factor-{factor}") for factor in FACTORS]
    return "\n\n".join(
        said("compare", *(root / f"classification-shapes-{method}-{setting}" for method in methods))
        for methods, setting in families
    )


def explained(root: Path, picture: Path) -> str:
    """Theorem 1's quantities of the main methods at ratio 0.5 or factor 2."""
    runs = [run for method in HEADLINE for run in root.glob(f"classification-shapes-{method}-*") if half(run)]
    return said("explain", *runs, "--baseline", root / "classification-shapes-none", "--output", picture)


def half(run: Path) -> bool:
    return run.name.endswith(("-ratio-0.5", "-factor-2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are, or are to be")
    parser.add_argument("--reports", type=Path, required=True, help="where reports and figures go")
    given = parser.parse_args()
    for table in SWEPT:
        root = given.runs / table
        said("sweep", table, "--output", root, "--trainer.enable_progress_bar", "false", MEASURED)
        said("report", root, "--output", given.reports / table)
        print(f"## `bigain sweep {table}`\n\nAll numbers and figures: [report]({table}/report.md).\n")
        print(f"```\n{compared(root)}\n```\n")
        print(f"```\n{explained(root, given.reports / table)}\n```\n")
    total = next(line for line in said("sweep", COUNTED, "--dry-run").splitlines() if " cells, " in line)
    print(f"## `bigain sweep {COUNTED} --dry-run`\n\n```\n{total}\n```")


if __name__ == "__main__":
    main()
