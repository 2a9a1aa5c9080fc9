"""How cost grows: of everything but the network with the classes, and the memory of the end of a run with its images.

    python benchmarks/growth.py > growth.md
    python benchmarks/growth.py --quick

Classes: the classifier with stages [5, 20] and keep [5, 1] on latents of SD 2.0 at 512 px, with a network that returns
its input, which leaves noise, errors, elimination and bookkeeping. Everything runs once per round, in changing order;
medians and (lowest to highest).

Images: a log of 1,000 classes, of which 5 trials have all, 20 trials 20 and 100 trials 16, is read, written as columns
and drawn as curves; memory is the peak of the process on a CPU beyond what is imported.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from rounds import rounds, spread_text
from torch import Tensor

from bigain.backbones import DiT
from bigain.cost.memory import peak_memory, restart_peak
from bigain.diffusion.elimination import staged_elimination
from bigain.diffusion.trials import stage_trials
from bigain.inspector.curves import errors_by_time, survival, truth_of
from bigain.modules import DiffusionClassifier
from bigain.runs.columns import column_blocks, read_columns, write_columns
from bigain.runs.logs import drop_incomplete_line, finished_images, read_records
from bigain.runs.records import ImageRecord

CLASSES, QUICK_CLASSES = (10, 30, 100, 300, 1000), (10, 100)
# The largest first: a later log grows the process less, since freed memory is used again.
LOGS, QUICK_LOGS = (8000, 2000), (10, 5)
LATENT = (4, 64, 64)
IMAGES = 2


class Null(DiT):
    """A backbone whose network returns its input."""

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return noisy.clone()


@torch.inference_mode()
def class_row(backbone: Null, classes: int, repetitions: int, device: torch.device) -> str:
    """Return evaluations per image, and the time of everything but the network and of elimination alone."""
    module = DiffusionClassifier(backbone)
    module.to(device)
    module.conditions = torch.arange(classes, device=device)
    latents = torch.randn(IMAGES, *LATENT, generator=torch.Generator().manual_seed(0)).to(device)
    stages, keep = stage_trials([5, 20], "cumulative"), [min(classes, 5), 1]

    def errors(image: Tensor, trial: Tensor, label: Tensor) -> Tensor:
        return label.float()

    tasks = {
        "all": lambda: module.classify(latents, [f"image-{i}" for i in range(IMAGES)], {}),
        "elimination": lambda: staged_elimination(errors, IMAGES, classes, stages, keep, device),
    }
    seconds, evaluations = rounds(tasks, repetitions, device), module.evaluations_per_image(classes)
    milliseconds = " | ".join(spread_text(values, 2, 1e3 / IMAGES) for values in seconds.values())
    per_evaluation = statistics.median(seconds["all"]) / IMAGES / evaluations
    return f"| {classes:,} | {evaluations:,} | {milliseconds} | {1e6 * per_evaluation:.0f} |"


def with_images(images: int) -> tuple[float, dict[str, float]]:
    """Return the size of a log in GB, and the peak memory of each step beyond what is imported, in MB."""
    draw, classes = random.Random(0), 1000
    pairs = [(c, t) for count, trials in ((classes, range(5)), (20, range(5, 20)), (16, range(20, 100)))
             for t in trials for c in range(count)]  # fmt: skip
    columns = ([c for c, _ in pairs], [t for _, t in pairs], [10 * t + 5 for _, t in pairs])
    survivors = [[*range(20)], [*range(16)], [0]]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        log = run / "predictions/rank-0.jsonl"
        log.parent.mkdir()
        with log.open("w") as file:
            for i in range(images):
                if i % 100 == 0:
                    errors = [draw.random() for _ in pairs]
                    template = ImageRecord("ID", -1, 0, *columns, errors, survivors, 1.0).to_json()
                file.write(template.replace("ID", f"n/{i}", 1).replace("-1", str(i % classes), 1) + "\n")
        cpu = torch.device("cpu")
        restart_peak(cpu)
        before = peak_memory(cpu) or 0
        peaks = {}
        drop_incomplete_line(log)
        done = finished_images(log.parent)
        peaks["resume"] = peak_memory(cpu)
        del done
        records = [*read_records(log.parent).values()]
        peaks["log"] = peak_memory(cpu)
        write_columns(run, records, classes)
        peaks["columns"] = peak_memory(cpu)
        label, timesteps, stage = read_columns(run, "label", "timesteps", "stage")
        truth = truth_of(label, classes)
        errors_by_time(lambda: column_blocks(run, "errors"), timesteps, truth)
        survival(stage, truth, len(survivors))
        peaks["curves"] = peak_memory(cpu)
        return log.stat().st_size / 1e9, {name: ((peak or 0) - before) / 1e6 for name, peak in peaks.items()}


def image_table(rows: Mapping[int, tuple[float, Mapping[str, float]]]) -> list[str]:
    lines = ["| images | log, GB | continuing, MB | end, MB | with the inspector, MB |", "|--:|--:|--:|--:|--:|"]
    for images, (size, peaks) in rows.items():
        cells = " | ".join(f"{peaks[name]:,.0f}" for name in ("resume", "columns", "curves"))
        lines.append(f"| {images:,} | {size:.2f} | {cells} |")
    few, many = min(rows), max(rows)
    for name in ("columns", "curves"):
        first, last = rows[few][1][name], rows[many][1][name]
        slope = (last - first) / (many - few)
        gigabytes = (last + slope * (50_000 - many)) / 1000
        lines += ["", f"{name}: {1000 * slope:.1f} kB per image; {gigabytes:.2f} GB at 50,000 images."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    backbone = Null("shapes_dit")
    backbone.load()
    print(f"## Classes\n\n{IMAGES} images at once, stages [5, 20], keep [5, 1], rows_per_forward as by default.\n")
    print("| classes | evaluations per image | ms per image, no network | elimination, ms | us per evaluation |")
    print("|--:|--:|--:|--:|--:|")
    for classes in QUICK_CLASSES if args.quick else CLASSES:
        print(class_row(backbone, classes, args.repetitions, torch.device(args.device)), flush=True)
    logs = {images: with_images(images) for images in (QUICK_LOGS if args.quick else LOGS)}
    print("\n## Images\n\nPeak memory beyond what is imported.\n")
    print("\n".join(image_table(logs)))


if __name__ == "__main__":
    main()
