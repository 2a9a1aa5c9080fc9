"""Runs all benchmarks, one after the other, and keeps what they print as Markdown, with hardware, versions and date.

    python -m benchmarks                                # hours on a CPU
    python -m benchmarks --quick                        # minutes: small sizes, to check that everything works
    python benchmarks/run_all.py --only growth operators
    python -m benchmarks --gpu                          # minutes: what only a GPU can say, see gpu.py

Results go to `benchmarks/results/<device>/` (`-quick` behind it for those), one file each and a table of them in
`README.md` there. A new benchmark is one line in `BENCHMARKS`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bigain.cost.environment import device_name, git_commit

HERE = Path(__file__).parent
PACKAGES = ("bigain", "torch", "diffusers", "transformers", "lightning", "tomesd", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
        name: Name of the result file.
        measures: What it measures.
        command: Python's arguments, with `{scratch}` for a folder that is deleted at the end and `{results}` for that
            of the results.
        full: Further arguments, without `--quick`.
        quick: Further arguments with `--quick`; None leaves it out.
    """

    name: str
    measures: str
    command: Sequence[str]
    full: Sequence[str] = ()
    quick: Sequence[str] | None = ("--quick",)

    @property
    def is_script(self) -> bool:
        """Whether it is a script beside this one, which prints Markdown; else it is a command of the package."""
        return self.command[0].endswith(".py")

    def arguments(self, quick: bool, scratch: Path, results: Path) -> list[str]:
        options = self.quick or () if quick else self.full
        return [argument.format(scratch=scratch, results=results) for argument in (*self.command, *options)]


BENCHMARKS = (
    Benchmark("operators", "merging against the attention it saves, and against tomesd", ["operators.py"]),
    Benchmark(
        "sd2",
        "a forward of SD 2.0 with each method: how much of the saving is real",
        ["-m", "bigain", "bench", "--model", "sd2"],
        quick=None,
    ),
    Benchmark(
        "dit_xl_2_512",
        "a forward of DiT-XL/2 at 512 px with each method: how much of the saving is real",
        ["-m", "bigain", "bench", "--model", "dit_xl_2_512"],
        quick=None,
    ),
    Benchmark(
        "shapes_unet",
        "a forward of the embedded U-Net with each method: how much of the saving is real",
        ["-m", "bigain", "bench", "--model", "shapes_unet"],
        ["--repetitions", "20"],
        [],
    ),
    Benchmark("growth", "cost with classes, and memory with images", ["growth.py"]),
    Benchmark("classifier", "evaluations and images per second compared with the plain way", ["classifier.py"]),
    Benchmark(
        "race",
        "evaluations that elimination needs",
        ["race.py", "--runs", "{scratch}/race"],
        (),
        ["--images", "8", "--model", "dit", "--compressor", "none"],
    ),
    Benchmark(
        "inspector",
        "cost of the inspector",
        ["inspector.py"],
        (),
        ["--images", "8", "--repeats", "2"],
    ),
    Benchmark(
        "generation",
        "images per second compared with a diffusers pipeline",
        ["generation.py"],
        (),
        ["--images", "2", "--steps", "2", "--repeats", "5"],
    ),
    Benchmark(
        "distances",
        "coverage of the intervals of distances",
        ["distances.py"],
        (),
        ["--sets", "5", "--sizes", "50"],
    ),
    Benchmark(
        "report",
        "time of bigain report",
        ["report.py", "--folder", "{scratch}/report"],
        (),
        ["--runs", "10", "--images", "200"],
    ),
    Benchmark("reproducibility", "bits that change with batches and threads", ["reproducibility.py"], (), None),
    Benchmark(
        "accuracy",
        "all methods on the embedded models",
        ["embedded.py", "--runs", "{scratch}/embedded", "--reports", "{results}/embedded"],
        (),
        None,
    ),
)


def hardware() -> str:
    """Return the processor, and the GPU if there is one."""
    text = f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        text = f"{device_name(torch.device('cuda', 0))} (driver's CUDA {torch.version.cuda}); {text}"
    return text


def installed(package: str) -> str:
    """Return the version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def heading(title: str, command: Sequence[str]) -> str:
    """Return title, command, date, hardware and versions of a result."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = ", ".join(f"{package} {installed(package)}" for package in PACKAGES)
    return (
        f"# {title[:1].upper()}{title[1:]}\n\n- command: `python {' '.join(command)}`\n- date: {now}\n"
        f"- hardware: {hardware()}\n- versions: {versions}; commit {git_commit()}\n\n"
    )


def run(benchmark: Benchmark, arguments: Sequence[str], results: Path) -> tuple[str, str]:
    """Run one and keep its output; return how it ended and its time."""
    name, *options = arguments
    path, shown = (str(HERE / name), f"benchmarks/{name}") if benchmark.is_script else (name, name)
    start = time.perf_counter()
    # Progress goes to stderr and is shown at once.
    process = subprocess.run([sys.executable, path, *options], stdout=subprocess.PIPE, text=True, check=False)
    duration = f"{time.perf_counter() - start:.0f} s"
    if process.returncode:
        return f"failed with {process.returncode}", duration
    text = process.stdout.strip()
    body = text if benchmark.is_script else f"```text\n{text}\n```"
    file = results / f"{benchmark.name}.md"
    file.write_text(heading(benchmark.measures, [shown, *options]) + body + "\n", encoding="utf-8")
    return "done", duration


def slug(quick: bool) -> str:
    """Return the name of the folder for the results of this machine."""
    name = device_name(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ("-quick" if quick else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--gpu", action="store_true", help="run gpu.py instead, see there")
    args = parser.parse_args()
    results = args.output or HERE / "results" / slug(args.quick)
    results.mkdir(parents=True, exist_ok=True)
    if args.gpu:
        quick = ["--quick"] if args.quick else []
        return subprocess.call([sys.executable, str(HERE / "gpu.py"), "--output", str(results), *quick])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for benchmark in BENCHMARKS:
            if benchmark.name not in args.only or (args.quick and benchmark.quick is None):
                continue
            print(f"{benchmark.name}: {benchmark.measures}", file=sys.stderr, flush=True)
            outcome, duration = run(benchmark, benchmark.arguments(args.quick, Path(scratch), results), results)
            rows.append((benchmark, outcome, duration))
    lines = ["| benchmark | measures | ended | took |", "|---|---|---|--:|"]
    for benchmark, outcome, duration in rows:
        name = f"[{benchmark.name}]({benchmark.name}.md)" if outcome == "done" else benchmark.name
        lines.append(f"| {name} | {benchmark.measures} | {outcome} | {duration} |")
    command = ["benchmarks/run_all.py", *sys.argv[1:]]
    text = heading("all benchmarks", command) + "\n".join(lines) + "\n"
    (results / "README.md").write_text(text, encoding="utf-8")
    print("\n".join(lines))
    return 1 if any(outcome.startswith("failed") for _, outcome, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
