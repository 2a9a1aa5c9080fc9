"""Check that two commits compute the same numbers, bit for bit.

    python benchmarks/equality.py BEFORE [AFTER]

Runs ten small configurations (classification and generation, both embedded models, every family of compressors, float32
and bfloat16, one and two processes) on both commits and compares every logged error and prediction, every array of
`predictions.npz`, every metric, count of FLOPs and site, and every generated image. Times are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CPU = ["--trainer.accelerator", "cpu", "--inspect", "0"]
BFLOAT16 = ["--trainer.precision", "bf16-true"]
CLASSIFY = ["--data.images", "12", *BFLOAT16]
GENERATE = ["--data.images", "12", "--model.steps", "5", *BFLOAT16]
FLOAT32 = ["--trainer.precision", "32-true"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
RUNS: dict[str, list[str]] = {
    "dit-none": ["demo_none.yaml", *CLASSIFY],
    "dit-tome-float32": ["demo_tome.yaml", *CLASSIFY, *FLOAT32],
    "dit-lgtm-two-processes": ["demo_lgtm.yaml", *CLASSIFY, *TWO],
    "dit-sito": ["demo_sito.yaml", *CLASSIFY],
    "dit-iekvd": ["demo_iekvd.yaml", *CLASSIFY],
    "unet-cam": ["demo_unet_cam.yaml", *CLASSIFY],
    "unet-abm-float32": ["demo_unet_abm.yaml", *CLASSIFY, *FLOAT32],
    "dit-lgtm-generation": ["demo_lgtm_generation.yaml", *GENERATE],
    "unet-iekvd-generation-float32": ["demo_unet_iekvd_generation.yaml", *GENERATE, *FLOAT32],
    "unet-none-generation-two-processes": ["demo_unet_none_generation.yaml", *GENERATE, *TWO],
}
RESULTS = ("metrics", "sites", "flops", "per_class", "confusion_matrix")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit whose numbers are right")
    parser.add_argument("after", nargs="?", default="HEAD", help="commit to check; default: HEAD")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="run only these")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        commits = enumerate((options.before, options.after))
        trees = [checkout(commit, Path(folder) / f"tree-{side}") for side, commit in commits]
        for name in options.only:
            runs = [run(tree, RUNS[name], Path(folder) / f"{name}-{side}") for side, tree in enumerate(trees)]
            values, differences = compare(*map(contents, runs))
            failed += bool(differences)
            print(f"{name:<36} {values:>6} values, {'; '.join(differences) or 'equal'}", flush=True)
        for tree in trees:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return bool(failed)


def checkout(commit: str, folder: Path) -> Path:
    """Check a commit out beside the working tree."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=ROOT, check=True)
    return folder


def run(tree: Path, arguments: list[str], output: Path) -> Path:
    """Run one configuration with the package of one commit."""
    command = [sys.executable, "-m", "bigain", "predict", "--config", *arguments, *CPU, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode} in {tree}:\n{process.stderr[-2000:]}")
    return output


def contents(folder: Path) -> dict[str, Any]:
    """Everything a run wrote that must not change, by name."""
    return dict(_contents(folder))


def _contents(folder: Path) -> Iterator[tuple[str, Any]]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for key in RESULTS:
        yield key, json.dumps(results.get(key))
    for log in (folder / "predictions").glob("rank-*.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            for key, value in record.items():
                # A missing key and a null are the same.
                if value is not None and not key.startswith("seconds"):
                    yield f"{record['image_id']} {key}", json.dumps(value)
    if results["task"] == "classification":
        with np.load(folder / "predictions" / "predictions.npz", allow_pickle=False) as columns:
            for key in columns.files:
                if not key.startswith("seconds"):
                    yield f"column {key}", (columns[key].dtype.str, columns[key].shape, columns[key].tobytes())
    for image in (folder / "samples").rglob("*.png"):
        yield str(image.relative_to(folder)), image.read_bytes()


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, list[str]]:
    """Count the values compared, and name those that differ or are missing on one side."""
    names = sorted({*before, *after})
    return len(names), [name for name in names if before.get(name) != after.get(name)]


if __name__ == "__main__":
    sys.exit(main())
