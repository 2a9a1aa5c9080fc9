"""Finished runs, read from their directories."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigain.errors import InputError
from bigain.runs.schema import RESULTS_VERSION

TASKS = ("classification", "generation")
_USUAL_DISTANCE = "frechet[pytorch-fid]"
# What reports and summaries need of `results.json`, and of which type.
_NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "task": str,
    "dataset.name": str,
    "dataset.images": int,
    "dataset.asked": int,
    "dataset.skipped": list,
    "model.name": str,
    "model.backbone": str,
    "compressors": list,
    "flops.gflops_per_evaluation": (int, float),
    "timing.seconds_per_image": (int, float),
    "timing.seconds": (int, float),
    "timing.resumed_images": int,
    "evaluations.per_image": (int, float),
    "sites": list,
    "metrics": dict,
    "protocol": dict,
    "environment": dict,
    "environment.packages": dict,
}


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: Its directory.
        results: Content of `results.json`.
        settings: Content of `identity.json`: the settings that numbers depend on, flat; empty for a run that Python
            code made without the command line.
    """

    path: Path
    results: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def task(self) -> str:
        """`classification` or `generation`."""
        return str(self.results["task"])

    @property
    def dataset(self) -> str:
        """Name of the dataset, e.g. `Oxford-IIIT Pets`."""
        return str(self.results["dataset"]["name"])

    @property
    def model(self) -> str:
        """Hub id or folder of the model."""
        return str(self.results["model"]["name"])

    @property
    def compressors(self) -> Sequence[Mapping[str, Any]]:
        """Class and settings of every compressor."""
        return list(self.results["compressors"])

    @property
    def gflops(self) -> float:
        """GFLOPs of one evaluation of the network."""
        return float(self.results["flops"]["gflops_per_evaluation"])

    @property
    def reduction(self) -> float | None:
        """Percent of the GFLOPs that compression saves; None without compression, or in old results that lack it."""
        whole = self.results["flops"].get("baseline_gflops")
        return 100 * (1 - self.gflops / whole) if whole and self.compressors else None

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return float(self.results["timing"]["seconds_per_image"])

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Estimates by name."""
        return dict(self.results["metrics"])

    @property
    def main_metric(self) -> str | None:
        """The accuracy, or the Frechet distance, if it was measured; of several distances the paper's."""
        names = [name for name in self.metrics if name in ("top1", "top1_precision") or name.startswith("frechet[")]
        return _USUAL_DISTANCE if _USUAL_DISTANCE in names else names[0] if names else None


def load_run(path: Path, partial: bool = False) -> Run:
    """Read a run directory.

    Args:
        path: What `bigain predict` wrote.
        partial: Also take a run that has not done all its images.

    Raises:
        InputError: If it is missing, unfinished, damaged or something else.
    """
    if not path.is_dir():
        raise InputError(f"{path} {'is not a directory' if path.exists() else 'does not exist'}")
    file = path / "results.json"
    if not file.is_file():
        unfinished = (path / "identity.json").is_file() or (path / "predictions").is_dir()
        reason = "is not finished: it has no results.json; run its command again" if unfinished else None
        raise InputError(f"{path} {reason or 'is not a run directory of bigain'}")
    results = read_results(file)
    dataset = results["dataset"]
    done = dataset["images"] + len(dataset["skipped"])
    if done < dataset["asked"] and not partial:
        raise InputError(
            f"{path} is not finished: {done} of {dataset['asked']} images are done; run its command again, or --partial"
        )
    identity = path / "identity.json"
    settings = _read(identity) if identity.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{identity} is damaged: expected settings by name")
    return Run(path, results, settings)


def read_results(file: Path) -> dict[str, Any]:
    """Content of `results.json`.

    Raises:
        InputError: If it is damaged, or not of this version.
    """
    results: dict[str, Any] = _read(file)
    _check(file, results)
    return results


def find_runs(paths: Sequence[Path], partial: bool = False) -> tuple[list[Run], list[str]]:
    """Read run directories, and directories of such: of `bigain evaluate`, or `runs/`.

    Args:
        paths: Directories; one that is named twice is read once.
        partial: Also take runs that have not done all their images.

    Returns:
        The runs, and why each other directory is not among them, with its name.
    """
    runs: dict[Path, Run] = {}
    left_out: dict[Path, str] = {}
    for path in (each for given in paths for each in _within(given)):
        # Not `resolve`, which raises a RuntimeError where links lead in a circle.
        real = Path(os.path.realpath(path))
        if real in runs or real in left_out:
            continue
        try:
            runs[real] = load_run(path, partial)
        except InputError as error:
            left_out[real] = str(error)
        except OSError as error:
            left_out[real] = f"{path} cannot be read: {error.strerror}"
    return list(runs.values()), list(left_out.values())


def _within(path: Path) -> Iterator[Path]:
    """A run directory itself; of another one the run directories in it, at most two levels down."""
    try:
        if path.is_dir() and not _is_run(path):
            inside = [one for level in ("*", "*/*") for one in sorted(path.glob(level)) if _is_run(one)]
            if inside:
                yield from inside
                return
    except OSError:
        pass
    yield path


def _is_run(path: Path) -> bool:
    return (path / "results.json").is_file() or (path / "identity.json").is_file()


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); run the command that wrote it again") from error


def _check(file: Path, results: Any) -> None:
    """Raise an InputError unless these are results of this version."""
    if not isinstance(results, dict) or "schema_version" not in results:
        raise InputError(f"{file} is not of bigain: it has no schema_version")
    if results["schema_version"] != RESULTS_VERSION:
        raise InputError(f"{file} has schema_version {results['schema_version']}; this bigain reads {RESULTS_VERSION}")
    for key, kind in _NEEDED.items():
        value: Any = results
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        negative = isinstance(value, (int, float)) and (value < 0 or (value == 0 and key.startswith("flops.")))
        if not isinstance(value, kind) or negative or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{file} is damaged: {key} is {value!r}; run the command that wrote it again")
    whole = results["flops"].get("baseline_gflops", 1.0)
    if not isinstance(whole, (int, float)) or not 0 < whole < math.inf:
        raise InputError(f"{file} is damaged: flops.baseline_gflops is {whole!r}; run the command that wrote it again")
    if results["task"] not in TASKS:
        raise InputError(f"{file}: task is {results['task']!r}; expected {' or '.join(TASKS)}")
    for name, estimate in results["metrics"].items():
        if not _is_estimate(estimate):
            raise InputError(f"{file} is damaged: metrics.{name} is {estimate!r}; run the command that wrote it again")
    for one in results["compressors"]:
        if (
            not isinstance(one, dict)
            or not isinstance(one.get("class"), str)
            or not isinstance(one.get("settings"), dict)
        ):
            raise InputError(f"{file} is damaged: compressors has {one!r}; run the command that wrote it again")


def _is_estimate(found: Any) -> bool:
    """Numbers or nothing, and an interval has two ends around the value."""
    if not isinstance(found, dict) or "value" not in found:
        return False
    low, value, high, n = (found.get(key) for key in ("low", "value", "high", "n"))
    if not all(map(_is_number, (low, value, high, n))) or (n is not None and n < 0):
        return False
    if low is None or high is None:
        return low is high
    # NaN, where nothing could be computed, lies on neither side.
    around = value is None or not (low > value or value > high)
    return around and math.isfinite(low) == math.isfinite(high)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
