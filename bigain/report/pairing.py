"""Which two runs may be compared image by image, and their images side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.report.statistics import Paired
from bigain.runs.files import DAMAGED_ARCHIVE
from bigain.runs.names import inner
from bigain.runs.results import Run
from bigain.runs.schema import CHOOSE_IMAGES

# What differs here is what is compared, or is told by the images themselves.
_COMPARED = ("compressor", "trainer.callbacks")
# These are told from the results, which every run has.
_IN_RESULTS = ("bigain", "seed", "trainer.precision", "model.init_args.", "data.class_path")
_SELECTION = CHOOSE_IMAGES | {"data.init_args.root", "data.init_args.seed"}
_SHOWN = 60
# The environment's part that may move a number; devices and commits are told, but do not forbid.
_NUMERIC = ("precision", "network_dtype")
_TOLD = ("device", "device_name", "cpu_threads", "git_commit", "attention_backend", "compile", "world_size", "python")


@dataclass(frozen=True)
class Outcomes:
    """Which images of a classification run are right; images without any label are not among them.

    Attributes:
        image_id: `(n,)`, text.
        label: `(n,)`, or `(n, k)` bool where images have several.
        correct: `(n,)`; with several labels, whether the prediction is one of them.
    """

    image_id: npt.NDArray[np.str_]
    label: npt.NDArray[Any]
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Differences:
    """How two runs differ besides their compressors.

    Attributes:
        forbidding: What makes an image-by-image comparison misleading: images, seed, protocol, versions.
        told: What is worth knowing: device, model, commit.
    """

    forbidding: tuple[str, ...]
    told: tuple[str, ...]


def outcomes(run: Run) -> Outcomes:
    """Read which images a run got right: three columns of `predictions.npz`, not the logs.

    Raises:
        InputError: If it is no classification, or the file is missing, damaged or of other results.
    """
    if run.task != "classification":
        raise InputError(f"{run.path} is a run of {run.task}; images can be compared pairwise in classification only")
    file = run.path / "predictions" / "predictions.npz"
    if not file.is_file():
        raise InputError(f"{file} does not exist; run the command that made {run.path} again")
    try:
        ids, label, prediction = _columns(file)
        right = label == prediction if label.ndim == 1 else label[np.arange(len(label)), prediction]
        kept = np.ones(len(ids), np.bool_) if label.ndim == 1 else label.any(axis=1)
        found = Outcomes(ids[kept], label[kept], right[kept])
    except DAMAGED_ARCHIVE as error:
        raise InputError(f"{file} is damaged ({error}); run the command that made {run.path} again") from error
    _check_against_results(run, found)
    return found


def _columns(file: Path) -> tuple[npt.NDArray[Any], ...]:
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as columns:
        ids, label, prediction = (columns[name] for name in ("image_id", "label", "prediction"))
    kinds = ids.dtype.kind + prediction.dtype.kind + label.dtype.kind
    if kinds not in ("Uii", "Uib") or label.ndim != 1 + (kinds == "Uib"):
        raise ValueError(f"columns of {ids.dtype}, {label.dtype} and {prediction.dtype}")
    if not ids.ndim == prediction.ndim == 1 or not len(ids) == len(prediction) == len(label):
        raise ValueError(f"columns of shape {ids.shape}, {label.shape} and {prediction.shape}")
    return ids, label, prediction


def _check_against_results(run: Run, found: Outcomes) -> None:
    name = run.main_metric
    told = run.metrics[name]["value"] if name else None
    # Not `> 1e-9`, which NaN would pass.
    if not len(found.correct) or told is None or not abs(float(found.correct.mean()) - told) <= 1e-9:
        raise InputError(
            f"{run.path}/predictions/predictions.npz does not give the {name} of results.json, {told}; "
            f"run the command that made {run.path} again"
        )


def differences(a: Run, b: Run, images: str | None) -> Differences:
    """How two runs differ besides their compressors.

    Args:
        a: A run.
        b: Another run.
        images: How their images differ, see `images_differ`.
    """
    forbidding = [images] if images else []
    if a.results.get("class_names") != b.results.get("class_names"):
        forbidding.append("the names of the classes")
    seeds = [[_seed(one) for one in run.compressors] for run in (a, b)]
    # Compressors of different kinds need not all be random.
    if all(seeds) and None not in seeds[0] + seeds[1] and set(seeds[0]) != set(seeds[1]):
        forbidding.append(f"seed of the compressor {seeds[0][0]} and {seeds[1][0]}")
    with_settings = bool(a.settings and b.settings)
    forbidding += _unlike(conditions(a, with_settings), conditions(b, with_settings))
    told = _unlike(circumstances(a), circumstances(b))
    return Differences(tuple(forbidding), tuple(told))


def conditions(run: Run, with_settings: bool = True) -> dict[str, Any]:
    """What must agree for runs to be compared image by image, by name.

    Args:
        run: The run.
        with_settings: Also what the results do not hold, e.g. the prompt. A run of Python code has none of it.
    """
    environment = run.results["environment"]
    found = {"task": run.task, "dataset": run.dataset}
    found |= {f"protocol {name}": value for name, value in run.results["protocol"].items()}
    found |= {name: environment.get(name) for name in _NUMERIC}
    found |= {f"version of {name}": value for name, value in environment.get("packages", {}).items()}
    if with_settings:
        found |= {
            key: value
            for key, value in run.settings.items()
            if not key.startswith((*_COMPARED, *_IN_RESULTS)) and key not in _SELECTION
        }
    return found


def circumstances(run: Run) -> dict[str, Any]:
    """What is worth knowing if it differs, but forbids nothing, by name."""
    model = {"model": run.model, "weights of the model": run.results["model"].get("weights")}
    return model | {name: run.results["environment"].get(name) for name in _TOLD}


def _seed(compressor: Mapping[str, Any]) -> str | None:
    seed = inner(compressor)["settings"].get("seed")
    return None if seed is None else str(seed)


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_short(a.get(key))} and {_short(b.get(key))}" for key in {**a, **b} if a.get(key) != b.get(key)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def images_differ(a: Outcomes, b: Outcomes) -> str | None:
    """How the images of two runs differ; None if both have the same."""
    if np.array_equal(a.image_id, b.image_id):
        return None
    shared = len(np.intersect1d(a.image_id, b.image_id))
    if shared == len(a.image_id) == len(b.image_id):
        return None
    return f"images: {len(a.image_id):,} and {len(b.image_id):,}, of which {shared:,} are the same"


def pair(a: Outcomes, b: Outcomes, names: tuple[str, str]) -> Paired:
    """Count discordant images over those that both runs have.

    Args:
        a: Of the first run.
        b: Of the second run.
        names: Their directories, for the message.

    Raises:
        InputError: If there is no such image, or one has other labels in the other run.
    """
    if np.array_equal(a.image_id, b.image_id):
        mine: Any = slice(None)
        theirs: Any = slice(None)
    else:
        _, mine, theirs = np.intersect1d(a.image_id, b.image_id, assume_unique=True, return_indices=True)
    if not len(a.correct[mine]):
        raise InputError(f"{names[0]} and {names[1]} have no image in common; compare runs over the same images")
    if not np.array_equal(a.label[mine], b.label[theirs]):
        raise InputError(
            f"{names[0]} and {names[1]} have other labels for the same images; there is nothing to compare"
        )
    return Paired.of(a.correct[mine], b.correct[theirs])
