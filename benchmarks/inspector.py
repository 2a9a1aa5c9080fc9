"""The time that the inspector adds to a run: the same run with it and without, in turns.

`python benchmarks/inspector.py` prints ratios, by the clock and in processor time; 1.05 is the bound. The run is
`demo_lgtm.yaml` with its 128 images, `--images` takes fewer: the added time does not depend on their number, so the
share of the whole run follows from it.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

from bigain.commands.main import main as bigain
from bigain.runs.results import read_results

DEFAULT_IMAGES = 128


def run(config: str, images: int, inspect: int, output: Path) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    command = ["predict", "--config", config, "--data.images", str(images), "--inspect", str(inspect)]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--output", str(output)]
    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        status = bigain(command)
    if status:
        raise SystemExit(f"bigain {' '.join(command)} ended with {status}")
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo_lgtm.yaml")
    parser.add_argument("--images", type=int, default=DEFAULT_IMAGES)
    parser.add_argument("--inspect", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        run(args.config, 2, args.inspect, Path(folder, "warm"))
        for repeat in range(args.repeats):
            # The order alternates.
            order = ("with", "without") if repeat % 2 else ("without", "with")
            for name in order:
                inspect = args.inspect if name == "with" else 0
                seconds[name].append(run(args.config, args.images, inspect, Path(folder, f"{name}{repeat}")))
        results = read_results(Path(folder, "without0"))
    print(f"{args.config}, {results['dataset']['images']} images, {args.repeats} pairs\n")
    for kind, name in enumerate(("wall", "processor")):
        pairs = [(a[kind], b[kind]) for a, b in zip(seconds["with"], seconds["without"], strict=True)]
        ratios = [a / b for a, b in pairs]
        added = statistics.median(a - b for a, b in pairs)
        without = statistics.median(b for _, b in pairs)
        share = 100 * added / (without * DEFAULT_IMAGES / args.images)
        print(
            f"- {name}: {without:.1f} s without, ratio {statistics.median(ratios):.3f} (median of {args.repeats}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}), {added:+.2f} s: {share:.1f} % of {DEFAULT_IMAGES} images"
        )


if __name__ == "__main__":
    main()
