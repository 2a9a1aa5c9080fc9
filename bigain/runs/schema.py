"""Types of the JSON files of a run, and the check of a file against its type."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from bigain.errors import InputError

RESULTS_VERSION = 1
RESPONSE_VERSION = 1
RESPONSE_FILE = "frequency_response.json"
Task = Literal["classification", "generation"]
TASKS = get_args(Task)

# Settings in identity.json that choose the images. The result of an image does not depend on the other images.
CHOOSE_IMAGES = frozenset(f"data.init_args.{name}" for name in ("images", "limit", "per_class", "subset"))


class _Estimate(TypedDict):
    value: float
    low: float | None
    high: float | None
    n: int


class Estimate(_Estimate, total=False):
    """A number with its 95 % interval, if one is computed, and the number of images behind it."""

    standard_error: float


class SkippedImage(TypedDict):
    """An image that could not be read."""

    image_id: str
    reason: str


class Dataset(TypedDict):
    """`images` of `asked` are done, of `official` in the split; `unlabelled` ones count in no metric."""

    name: str
    images: int
    asked: int
    official: int | None
    classes: int
    image_size: int
    unlabelled: int
    skipped: list[SkippedImage]


class ModelWeights(TypedDict, total=False):
    """A hash of all weights."""

    weights: str


class Model(ModelWeights):
    """The class of the backbone, and its hub id or folder."""

    backbone: str
    name: str


# `class` is a keyword, so this one has no class statement.
Compressor = TypedDict("Compressor", {"class": str, "settings": dict[str, Any]})


class Site(TypedDict):
    """A compressed block."""

    name: str
    index: int
    part: str | None
    stride: int
    tokens_in: int
    tokens_out: int
    compressor: str


class _Flops(TypedDict):
    gflops_per_evaluation: float


class Flops(_Flops, total=False):
    """Cost of one row of a forward."""

    baseline_gflops: float
    reduction_percent: float
    by_category: dict[str, float]
    by_operation: dict[str, float]


class _Timing(TypedDict):
    seconds: float
    seconds_per_image: float
    resumed_images: int


class Timing(_Timing, total=False):
    """Seconds of the last session, and what was measured of the networks."""

    clock: str | None
    denoiser: dict[str, Any]
    vae: dict[str, Any]
    peak_memory_bytes: int | None


class _Evaluations(TypedDict):
    per_image: float


class Evaluations(_Evaluations, total=False):
    """Rows of the denoiser."""

    planned_per_image: float
    per_second: float | None
    gflops_per_image: float


class _Results(TypedDict):
    schema_version: int
    task: Task
    dataset: Dataset
    model: Model
    compressors: list[Compressor]
    sites: list[Site]
    flops: Flops
    timing: Timing
    metrics: dict[str, Estimate]
    evaluations: Evaluations
    protocol: dict[str, Any]
    environment: dict[str, Any]


class Results(_Results, total=False):
    """Content of `results.json`. `docs/results.md` explains every key."""

    fingerprint: str | None
    class_names: list[str]
    per_class: list[dict[str, int]] | None
    confusion_matrix: list[list[int]] | None
    distance_missing: str | None
    clip_score_missing: str | None
    fidelity_to: dict[str, Any]


class ResponseSite(TypedDict):
    """Energies of a compressed module, by timesteps and frequencies. `docs/explain.md` explains every key."""

    name: str
    index: int
    module: str
    grid: list[int]
    channels: int
    modes: list[int]
    rows: list[int]
    rows_left_out: int
    original: list[list[float]]
    compressed: list[list[float]]
    error: list[list[float]]
    kept: list[float | None]
    destroyed: list[float | None]


class ResponseFile(TypedDict):
    """Content of `frequency_response.json`."""

    schema_version: int
    bands: list[float]
    timesteps: list[float]
    batches: int
    images: int
    sites: list[ResponseSite]
    not_measured: list[str]


def check(path: Path, content: Any, expected: Any, advice: str = "run the command that wrote it again") -> None:
    """Check the content of a JSON file.

    Args:
        path: The file, for the message.
        content: What it holds.
        expected: Its type, out of TypedDict, dict, list, union, Literal and plain types.
        advice: What to do about a damaged file.

    Raises:
        InputError: If a value is missing or of another type.
    """
    for key, value, kind in _mismatches(content, expected, ""):
        raise InputError(f"{path} is damaged: {key or 'its content'} is {value}, expected {kind}; {advice}")


def _mismatches(value: Any, expected: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and expected type of every part of another type."""
    origin, arguments = get_origin(expected), get_args(expected)
    inside = f"{key}." if key else ""
    if is_typeddict(expected) and isinstance(value, dict):
        for name, kind in get_type_hints(expected).items():
            if name in value:
                yield from _mismatches(value[name], kind, inside + name)
            elif name in expected.__required_keys__:
                yield inside + name, "missing", _type_name(kind)
    elif origin is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from _mismatches(item, arguments[1], inside + name)
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _mismatches(item, arguments[0], f"{key}[{number}]")
    elif not _matches(value, expected, origin, arguments, key):
        yield key, reprlib.repr(value), _type_name(expected)


def _matches(value: Any, expected: Any, origin: Any, arguments: tuple[Any, ...], key: str) -> bool:
    if origin in (Union, UnionType):
        return any(not any(_mismatches(value, kind, key)) for kind in arguments)
    if origin is Literal:
        return value in arguments
    if expected is Any:
        return True
    kind = dict if is_typeddict(expected) else (int, float) if expected is float else origin or expected
    # A bool is an int for Python, but not a number in JSON.
    return isinstance(value, kind) and not isinstance(value, bool)


def _type_name(expected: Any) -> str:
    if get_origin(expected) in (Union, UnionType, Literal):
        return " or ".join(_type_name(kind) for kind in get_args(expected))
    if is_typeddict(expected):
        return "dict"
    expected = get_origin(expected) or expected
    return "None" if expected is type(None) else expected.__name__ if isinstance(expected, type) else repr(expected)
