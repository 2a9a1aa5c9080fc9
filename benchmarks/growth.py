"""How cost grows: of one attention site with its tokens, of everything but the network with the classes, and the
memory of the end of a run with its images.

    python benchmarks/growth.py > growth.md
    python benchmarks/growth.py --quick
    python benchmarks/growth.py --picture growth.png       # the same as curves

Tokens: one self-attention layer of SD 2.0's first level (320 channels, 5 heads), alone and with each method around
it. Classes: the classifier with stages [5, 20] and keep [5, 1] on latents of SD 2.0 at 512 px, with a network that
returns its input, which leaves noise, errors, elimination and bookkeeping. Everything runs once per round, in
changing order; medians and (lowest to highest). Memory on a CPU is the growth of the process, which is less than the
memory used if freed memory is reused.

Images: a log of 1,000 classes, of which 5 trials have all, 20 trials 20 and 100 trials 16, is read, written as columns
and drawn as curves; memory is the peak of the process on a CPU beyond what is imported.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from rounds import rounds, spread_text
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones import DiT
from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.commands.bench.measure import Spread
from bigain.compressors import ABM, IEKVD, LGTM, Compressor, SiTo, ToMe
from bigain.compressors.kv import KVDownsampler
from bigain.compressors.merging import TokenMerger
from bigain.cost.memory import peak_memory, restart_peak
from bigain.diffusion.elimination import staged_elimination
from bigain.diffusion.trials import stage_trials
from bigain.inspector.curves import errors_by_time, survival, truth_of
from bigain.modules import DiffusionClassifier
from bigain.runs.columns import column_blocks, read_columns, write_columns
from bigain.runs.logs import drop_incomplete_line, finished_images, read_records
from bigain.runs.records import ImageRecord

CHANNELS, HEADS = 320, 5
TOKENS, CLASSES = (256, 1024, 4096, 16384), (10, 30, 100, 300, 1000)
# The largest first: a later log grows the process less, since freed memory is used again.
LOGS = (8000, 2000)
QUICK_TOKENS, QUICK_CLASSES, QUICK_LOGS = (256, 1024), (10, 100), (10, 5)
METHODS: dict[str, Callable[[], Compressor]] = {
    "ToMe 0.7": lambda: ToMe(ratio=0.7),
    "LGTM 0.7": lambda: LGTM(ratio=0.7),
    "ABM 0.7": lambda: ABM(ratio=0.7),
    "SiTo 0.7": lambda: SiTo(ratio=0.7),
    "IEKVD 2": lambda: IEKVD(factor=2),
}
# Its graph is n x n.
MOST_TOKENS = {"SiTo 0.7": 4096}
LATENT = (4, 64, 64)
IMAGES = 2


@dataclass(frozen=True)
class Cell:
    """One number of the first table.

    Attributes:
        seconds: One per round.
        gflops: By torch's counter.
        megabytes: Increase over the memory in use before; None where unknown.
    """

    seconds: Sequence[float]
    gflops: float
    megabytes: float | None


def tasks_of(side: int, device: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Attention over `side * side` tokens: alone, with each method around it, and each method without it."""
    torch.manual_seed(0)
    with torch.device(device):
        x = torch.randn(1, side * side, CHANNELS).to(dtype)
        attention = Attention(CHANNELS, heads=HEADS, dim_head=CHANNELS // HEADS).to(dtype).eval()
        context = ForwardContext.of(torch.empty(1, 1, side, side), 500, None)
    site = Site("site", 0, None, 1, attention)
    tasks: dict[str, Callable[[], object]] = {"attention": lambda: attention(x)}
    for name, make in METHODS.items():
        if side * side <= MOST_TOKENS.get(name, side * side):
            tasks[f"{name} with attention"], tasks[name] = around(make(), attention, x, site, context)
    return tasks


def around(
    compressor: Compressor, attention: Attention, x: Tensor, site: Site, context: ForwardContext
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Compressed attention, and the compressor's own work alone."""
    if isinstance(compressor, KVDownsampler):
        keys = partial(compressor.downsample, x, site, context)
        return lambda: attention(x, encoder_hidden_states=keys()), keys
    assert isinstance(compressor, TokenMerger)
    decide = partial(compressor.plan, x, site, context)

    def merged(between: Callable[[Tensor], Tensor]) -> Tensor:
        plan = decide()
        return plan.unmerge(between(plan.merge(x)))

    return lambda: merged(attention), lambda: merged(lambda tokens: tokens)


@torch.inference_mode()
def with_tokens(n: int, repetitions: int, device: torch.device, dtype: torch.dtype) -> dict[str, Cell]:
    side = math.isqrt(n)
    tasks = tasks_of(side, str(device), dtype)
    counted = {}
    for name, task in tasks_of(side, "meta", dtype).items():
        with FlopCounterMode(display=False) as counter:
            task()
        counted[name] = counter.get_total_flops() / 1e9
    seconds = rounds(tasks, repetitions, device)
    return {name: Cell(seconds[name], counted[name], megabytes(task, device)) for name, task in tasks.items()}


def megabytes(task: Callable[[], object], device: torch.device) -> float | None:
    if not restart_peak(device):
        return None
    before = peak_memory(device)
    task()
    after = peak_memory(device)
    return None if before is None or after is None else (after - before) / 1e6


class Null(DiT):
    """A backbone whose network returns its input."""

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return noisy.clone()


@torch.inference_mode()
def with_classes(backbone: Null, classes: int, repetitions: int, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Return evaluations per image, and seconds per image of everything but the network and of elimination alone."""
    module = DiffusionClassifier(backbone)
    module.to(device)
    module.conditions = torch.arange(classes, device=device)
    latents = torch.randn(IMAGES, *LATENT, generator=torch.Generator().manual_seed(0)).to(device)
    stages, keep = stage_trials([5, 20], "cumulative"), [min(classes, 5), 1]

    def errors(image: Tensor, trial: Tensor, label: Tensor) -> Tensor:
        return label.float()

    seconds = rounds(
        {
            "all": lambda: module.classify(latents, [f"image-{i}" for i in range(IMAGES)]),
            "elimination": lambda: staged_elimination(errors, IMAGES, classes, stages, keep, device),
        },
        repetitions,
        device,
    )
    per_image = {name: [value / IMAGES for value in values] for name, values in seconds.items()}
    return module.evaluations_per_image(classes), per_image


def with_images(images: int) -> tuple[float, dict[str, float]]:
    """Return the size of a log in GB, and the peak memory of each step beyond what is imported, in MB."""
    draw, classes = random.Random(0), 1000
    pairs = [(c, t) for alive, trials in ((classes, range(5)), (20, range(5, 20)), (16, range(20, 100)))
             for t in trials for c in range(alive)]  # fmt: skip
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
        grown = {}
        drop_incomplete_line(log)
        done = finished_images(log.parent)
        grown["resume"] = peak_memory(cpu)
        del done
        records = [*read_records(log.parent).values()]
        grown["log"] = peak_memory(cpu)
        write_columns(run, records, classes)
        grown["columns"] = peak_memory(cpu)
        label, timesteps, stage = read_columns(run, "label", "timesteps", "stage")
        truth = truth_of(label, classes)
        errors_by_time(lambda: column_blocks(run, "errors"), timesteps, truth)
        survival(stage, truth, len(survivors))
        grown["curves"] = peak_memory(cpu)
        return log.stat().st_size / 1e9, {name: ((peak or 0) - before) / 1e6 for name, peak in grown.items()}


def image_table(rows: Mapping[int, tuple[float, Mapping[str, float]]]) -> list[str]:
    lines = ["| images | log, GB | continuing, MB | end, MB | with the inspector, MB |", "|--:|--:|--:|--:|--:|"]
    for images, (size, peaks) in rows.items():
        cells = " | ".join(f"{peaks[name]:,.0f}" for name in ("resume", "columns", "curves"))
        lines.append(f"| {images:,} | {size:.2f} | {cells} |")
    few, many = min(rows), max(rows)
    for name in ("columns", "curves"):
        first, last = rows[few][1][name], rows[many][1][name]
        slope = (last - first) / (many - few)
        at = (last + slope * (50_000 - many)) / 1000
        lines += ["", f"{name}: {1000 * slope:.1f} kB per image; {at:.2f} GB at 50,000 images."]
    return lines


def token_table(rows: Mapping[int, Mapping[str, Cell]]) -> list[str]:
    lines = ["| tokens | what | ms | of attention | GFLOPs | of attention | MB more |", "|--:|---|--:|--:|--:|--:|--:|"]
    for n, cells in rows.items():
        full = cells["attention"]
        for name, cell in cells.items():
            share = spread_text([a / b for a, b in zip(cell.seconds, full.seconds, strict=True)], 2)
            memory = "" if cell.megabytes is None else f"{cell.megabytes:,.0f}"
            flops = f"{cell.gflops:.3f} | {cell.gflops / full.gflops:.3f}"
            lines.append(f"| {n:,} | {name} | {spread_text(cell.seconds, 2, 1e3)} | {share} | {flops} | {memory} |")
    return lines


def class_table(rows: Mapping[int, tuple[int, Mapping[str, Sequence[float]]]]) -> list[str]:
    head = "| classes | evaluations per image | ms per image, no network | elimination, ms | us per evaluation |"
    lines = [head, "|--:|--:|--:|--:|--:|"]
    for classes, (evaluations, seconds) in rows.items():
        each = Spread.of(seconds["all"]).median / evaluations * 1e6
        took = f"{spread_text(seconds['all'], 1, 1e3)} | {spread_text(seconds['elimination'], 2, 1e3)}"
        lines.append(f"| {classes:,} | {evaluations:,} | {took} | {each:.0f} |")
    return lines


def draw(tokens: Mapping[int, Mapping[str, Cell]], classes: Mapping[int, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in next(iter(tokens.values())):
        if name == "attention" or name.endswith("with attention"):
            points = [(n, Spread.of(cells[name].seconds).median) for n, cells in tokens.items() if name in cells]
            left.plot(*zip(*points, strict=True), marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds of one layer")
    left.legend()
    for key, label in (("all", "all but the network"), ("elimination", "elimination")):
        right.plot(list(classes), [Spread.of(row[1][key]).median for row in classes.values()], marker="o", label=label)
    right.set(xscale="log", yscale="log", xlabel="classes", ylabel="seconds per image")
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    tokens = {n: with_tokens(n, given.repetitions, device, dtype) for n in (QUICK_TOKENS if given.quick else TOKENS)}
    print(f"## Tokens\n\nOne row of {CHANNELS} channels, {given.dtype}, {device}.\n")
    print("\n".join(token_table(tokens)), "\n", sep="\n")
    backbone = Null("shapes_dit")
    backbone.load()
    classes = {
        k: with_classes(backbone, k, given.repetitions, device) for k in (QUICK_CLASSES if given.quick else CLASSES)
    }
    print(f"## Classes\n\n{IMAGES} images at once, stages [5, 20], keep [5, 1], rows_per_forward as by default.\n")
    print("\n".join(class_table(classes)))
    logs = {n: with_images(n) for n in (QUICK_LOGS if given.quick else LOGS)}
    print("\n## Images\n\nPeak memory beyond what is imported.\n")
    print("\n".join(image_table(logs)))
    if given.picture is not None:
        draw(tokens, classes, given.picture)


if __name__ == "__main__":
    main()
