"""Finished runs, read from their directories."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigain.errors import InputError
from bigain.runs.files import read_json, write_json, write_text
from bigain.runs.schema import RESULTS_VERSION, Compressor, MetricEstimate, Results, check

# In the order in which results list them.
_ACCURACIES = ("top1", "top1_precision", "linear_probe", "knn")
_PAPER_DISTANCE = "frechet[pytorch-fid]"


# Without `eq` a run can be a key of a cache.
@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        path: Its directory.
        results: Content of `results.json`.
        settings: Content of `identity.json`: the settings that numbers depend on, flat; empty for a run that Python
            code made without the command line.
    """

    path: Path
    results: Results
    settings: Mapping[str, Any]

    @property
    def task(self) -> str:
        """`classification`, `generation` or `features`."""
        return self.results["task"]

    @property
    def dataset(self) -> str:
        """Name of the dataset, e.g. `Oxford-IIIT Pets`."""
        return self.results["dataset"]["name"]

    @property
    def model(self) -> str:
        """Hub id or folder of the model."""
        return self.results["model"]["name"]

    @property
    def compressors(self) -> Sequence[Compressor]:
        """Class and settings of every compressor."""
        return self.results["compressors"]

    @property
    def gflops(self) -> float:
        """GFLOPs of one evaluation of the network."""
        return self.results["flops"]["gflops_per_evaluation"]

    @property
    def reduction(self) -> float | None:
        """Percent of the GFLOPs that compression saves; None without compression."""
        baseline = self.results["flops"]["baseline_gflops"]
        return 100 * (1 - self.gflops / baseline) if self.compressors else None

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return self.results["timing"]["seconds_per_image"]

    @property
    def metrics(self) -> Mapping[str, MetricEstimate]:
        """Estimates by name."""
        return self.results["metrics"]

    @property
    def main_metric(self) -> str | None:
        """Name of the accuracy or the Frechet distance, the paper's if there are several; None if neither is there."""
        names = [name for name in self.metrics if name in _ACCURACIES or name.startswith("frechet[")]
        return _PAPER_DISTANCE if _PAPER_DISTANCE in names else names[0] if names else None


def load_run(path: Path) -> Run:
    """Load a run directory.

    Raises:
        InputError: If it is missing, unfinished, damaged or not a run directory.
    """
    results = read_results(path)
    dataset = results["dataset"]
    done = dataset["images"] + len(dataset["skipped"])
    if done < dataset["asked"]:
        raise InputError(f"{path} is not finished: {done} of {dataset['asked']} images are done; run its command again")
    return Run(path, results, read_settings(path))


def read_settings(run: Path) -> dict[str, Any]:
    """Return the content of `identity.json`; empty for a run that Python code made.

    Raises:
        InputError: If the file is damaged.
    """
    identity = run / "identity.json"
    return read_json(identity, dict[str, Any]) if identity.is_file() else {}


def has_results(run: Path) -> bool:
    """Whether a run directory has results."""
    return (run / "results.json").is_file()


def read_results(run: Path) -> Results:
    """Load the results of a run directory.

    Raises:
        InputError: If it has none, or they are damaged or of another version.
    """
    if not run.is_dir():
        raise InputError(f"{run} {'is not a directory' if run.exists() else 'does not exist'}")
    file = run / "results.json"
    if not file.is_file():
        if (run / "identity.json").is_file() or (run / "predictions").is_dir():
            raise InputError(f"{run} is not finished: it has no results.json; run its command again")
        raise InputError(f"{run} is not a run directory of bigain")
    content = read_json(file, dict[str, Any])
    version = content.get("schema_version")
    if version is None:
        raise InputError(f"{file} is not of bigain: it has no schema_version")
    if version != RESULTS_VERSION:
        raise InputError(f"{file} has schema_version {version}; this bigain reads {RESULTS_VERSION}")
    check(file, content, Results)
    return content


def read_generation(run: Path) -> Results:
    """Return the results of a run that has to be a generation: see `read_results`."""
    results = read_results(run)
    if results["task"] != "generation":
        raise InputError(f"{run} is a run of {results['task']}; expected a generation run")
    return results


def write_results(run: Path, results: Results) -> None:
    """Write `results.json`."""
    write_json(run / "results.json", results)


def read_ids(run: Path) -> list[str]:
    """Ids of the images that a run chose, from `images.txt`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    file = run / "images.txt"
    try:
        # Not `splitlines`, which also splits at other characters.
        return [id_in(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}); run the command that wrote it again") from error


def write_ids(run: Path, ids: Sequence[str]) -> None:
    """Write `images.txt`, which another run accepts as `--data.subset`: see `id_in`."""
    is_plain = {i: i.splitlines() == [i.strip()] and not i.startswith('"') for i in ids}
    write_text(run / "images.txt", "".join(f"{i if is_plain[i] else json.dumps(i)}\n" for i in ids))


def id_in(line: str) -> str:
    """Return the id in a line of `images.txt`: the line, or a JSON string for ids with line breaks."""
    if line.startswith('"'):
        with suppress(ValueError):
            return str(json.loads(line))
    return line


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Load run directories, and the runs in directories such as `runs/` or those of `bigain evaluate`: see `load_run`.

    Returns:
        The runs, each once, and the reason for each directory that is left out.
    """
    runs: list[Run] = []
    left_out: dict[Path, str] = {}
    seen: set[str] = set()
    for path in (run for folder in paths for run in _runs_in(folder)):
        # `Path.resolve` raises a RuntimeError for circular links.
        resolved = os.path.realpath(path)
        if resolved in seen:
            continue
        seen.add(resolved)
        try:
            runs.append(load_run(path))
        except InputError as error:
            left_out[path] = str(error)
        except OSError as error:
            left_out[path] = f"{path} cannot be read: {error.strerror}"
    return runs, left_out


def _runs_in(path: Path) -> Sequence[Path]:
    """Return a run directory itself, or the run directories at most two levels below another directory."""

    def is_run(path: Path) -> bool:
        try:
            return has_results(path) or (path / "identity.json").is_file()
        except OSError:
            # Perhaps one: loading it says why it cannot be read.
            return True

    if is_run(path):
        return [path]
    candidates = [*sorted(path.glob("*")), *sorted(path.glob("*/*"))]
    return [run for run in candidates if run.name[0] != "." and is_run(run)] or [path]
