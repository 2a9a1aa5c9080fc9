"""Differences between the settings of runs, and the outcomes of two runs on the same images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.runs.columns import read_columns
from bigain.runs.names import inner
from bigain.runs.results import Run, read_ids
from bigain.runs.schema import CHOOSE_IMAGES

Ids: TypeAlias = npt.NDArray[np.str_]
Correct: TypeAlias = npt.NDArray[np.bool_]
# Runs of one task whose numbers may stand side by side, after the settings that distinguish them from other series.
Series: TypeAlias = tuple[list[str], list[Run]]

# Settings under comparison, settings that the results of every run have, and settings that choose the images.
_IGNORED = (
    *("compressor", "trainer.callbacks"),
    *("bigain", "seed", "trainer.precision", "model.init_args.", "data.class_path"),
)
_SELECTION = CHOOSE_IMAGES | {"data.init_args.root", "data.init_args.seed"}
# Entries of the protocol that change no number, or that follow from others: from the names of metrics, a digest of the
# statistics, the trials of each stage.
_NO_CONDITION = ("reference_file", "further_references", "bands", "budget")
# Entries of the environment that may change a number, and other circumstances.
_NUMERIC = ("precision", "network_dtype")
_MINOR = ("device", "device_name", "cpu_threads", "git_commit", "attention_backend", "compile", "world_size", "python")
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Outcomes:
    """Which images a classification run got right, without images that have no label.

    Attributes:
        image_id: `(n,)`, text.
        label: `(n,)`, or `(n, k)` bool for images with several labels.
        correct: `(n,)`; with several labels, whether the prediction is one of them.
    """

    image_id: Ids
    label: npt.NDArray[Any]
    correct: Correct


# Two entries: the base run, which is compared with many runs, and the other one.
@lru_cache(maxsize=2)
def outcomes(run: Run, metric: str = "") -> Outcomes:
    """Load which images a classification got right, or a classifier on features, by the name of its accuracy.

    Raises:
        InputError: If its file is missing or damaged.
    """
    predictions = f"prediction/{metric}" if run.task == "features" else "prediction"
    ids, label, prediction = read_columns(run.path, "image_id", "label", predictions)
    if label.ndim == 1:
        return Outcomes(ids, label, label == prediction)
    correct, labelled = label[np.arange(len(label)), prediction], label.any(axis=1)
    return Outcomes(ids[labelled], label[labelled], correct[labelled])


def shared_images(first: Ids, second: Ids) -> tuple[Any, Any]:
    """Return the indices of the ids that both have, into unique ids `(n,)` and `(m,)`, in the same order."""
    if np.array_equal(first, second):
        return slice(None), slice(None)
    return np.intersect1d(first, second, assume_unique=True, return_indices=True)[1:]


def pair(a: Outcomes, b: Outcomes, names: tuple[str, str]) -> tuple[Correct, Correct]:
    """Return which of the shared images each run got right; `names` are their directories, for the message.

    Raises:
        InputError: If there is no such image, or one has a different label in the other run.
    """
    a_rows, b_rows = shared_images(a.image_id, b.image_id)
    if not len(a.correct[a_rows]):
        raise InputError(f"{names[0]} and {names[1]} have no image in common; compare runs over the same images")
    if not np.array_equal(a.label[a_rows], b.label[b_rows]):
        raise InputError(f"{names[0]} and {names[1]} have different labels for the same images")
    return a.correct[a_rows], b.correct[b_rows]


def differences(a: Run, b: Run, a_ids: Ids, b_ids: Ids) -> tuple[list[str], list[str]]:
    """Return how two runs, with the ids of their images, differ besides their compressors.

    Returns:
        What makes an image-by-image comparison misleading: images, seed, protocol, versions; and everything else:
        device, model, commit.
    """
    blocking = []
    shared = len(a_ids[shared_images(a_ids, b_ids)[0]])
    if not shared == len(a_ids) == len(b_ids):
        blocking.append(f"images: {len(a_ids):,} and {len(b_ids):,}, of which {shared:,} are the same")
    seeds = [[str(inner(compressor)["settings"].get("seed")) for compressor in run.compressors] for run in (a, b)]
    # Only compressors that make random choices have a seed.
    if all(seeds) and "None" not in seeds[0] + seeds[1] and {*seeds[0]} != {*seeds[1]}:
        blocking.append(f"seed of the compressor {seeds[0][0]} and {seeds[1][0]}")
    with_settings = bool(a.settings and b.settings)
    described = [[_conditions(run, with_settings) for run in (a, b)], [_circumstances(run) for run in (a, b)]]
    conditions, minor = (
        [f"{name} {_short(first)} and {_short(second)}" for name, (first, second) in _varying(settings).items()]
        for settings in described
    )
    return blocking + conditions, minor


def series(runs: Sequence[Run]) -> list[Series]:
    """Split runs of one task into series of the same images and settings, the one of most runs first."""
    with_settings = all(run.settings for run in runs)
    by_key: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        conditions = {"images": images_of(run), **_conditions(run, with_settings)}
        by_key.setdefault(json.dumps(conditions, sort_keys=True), (conditions, []))[1].append(run)
    groups = sorted(by_key.values(), key=lambda group: (-len(group[1]), str(group[0].get("protocol seed"))))
    varying = _varying([conditions for conditions, _ in groups])
    described = []
    for conditions, members in groups:
        names = [name for name in varying if conditions.get(name) is not None]
        texts = [f"{name.removeprefix('protocol ')} {_short(_text(conditions[name]))}" for name in names]
        described.append((texts, members))
    return described


def _varying(described: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the values of each name whose values are not all the same, as text."""
    names = dict.fromkeys(name for settings in described for name in settings)
    columns = {name: [settings.get(name) for settings in described] for name in names}
    return {name: [*map(_text, values)] for name, values in columns.items() if any(x != values[0] for x in values)}


def _text(value: Any) -> str:
    """Return a setting as text: `error_level 0.5, look_every 1` for a mapping."""
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _conditions(run: Run, with_settings: bool = True) -> dict[str, Any]:
    """Return what must agree for runs to be compared image by image, by name.

    `with_settings` adds settings that results do not hold, such as the prompt; runs made in Python have none.
    """
    environment = run.results["environment"]
    conditions = {"task": run.task, "dataset": run.dataset, "class names": run.results.get("class_names")}
    protocol = run.results["protocol"].items()
    conditions |= {f"protocol {name}": value for name, value in protocol if name not in _NO_CONDITION}
    conditions |= {name: environment.get(name) for name in _NUMERIC}
    conditions |= {f"version of {name}": value for name, value in environment.get("packages", {}).items()}
    settings = run.settings if with_settings else {}
    ignored = {key for key in settings if key in _SELECTION or key.startswith(_IGNORED)}
    return conditions | {key: value for key, value in settings.items() if key not in ignored}


def _circumstances(run: Run) -> dict[str, Any]:
    """Return what may differ between runs that are compared, by name."""
    model = {"model": run.model, "weights of the model": run.results["model"].get("weights")}
    return model | {name: run.results["environment"].get(name) for name in _MINOR}


@lru_cache(maxsize=1024)
def images_of(run: Run) -> str:
    """Return the number of images, and a hash over their ids."""
    count = run.results["dataset"]["images"]
    try:
        ids = read_ids(run.path)
    except InputError:
        return f"{count:,}"
    return f"{count:,} ({hashlib.sha256(''.join(sorted(ids)).encode()).hexdigest()[:8]})"
