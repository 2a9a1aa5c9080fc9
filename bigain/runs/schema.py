"""Types of the JSON files of a run, and the check of a file against its type. `docs/results.md` explains every key."""

# Without postponed annotations: with them, TypedDict does not see which keys are required.
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from bigain.errors import InputError

RESULTS_VERSION = 1
RESPONSE_VERSION = 1
RESPONSE_FILE = "frequency_response.json"

Task = Literal["classification", "generation", "features"]
Protocol = Literal["pytorch-fid", "torch-fidelity", "torchmetrics", "shapes-features", "dinov2", "clip"]
LpipsNetwork = Literal["alex", "vgg", "squeeze"]
Better = Literal["higher", "lower"]
TASKS = get_args(Task)

# Settings in identity.json that choose the images. The result of an image does not depend on the other images.
CHOOSE_IMAGES = frozenset(f"data.init_args.{name}" for name in ("images", "limit", "per_class", "subset"))


class Estimate(TypedDict):
    """A number with its 95 % interval, if one is computed, and the number of images behind it.

    `bias` is by how much a distance is larger than that of infinitely many images; None with fewer images than
    features.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    standard_error: NotRequired[float]
    standard_deviation: NotRequired[float]
    bias: NotRequired[float | None]


class MetricEstimate(Estimate):
    """An estimate with what its metric declares, see `bigain.metrics.base.Metric`."""

    unit: str
    better: Better | None


Compressor = TypedDict("Compressor", {"class": str, "settings": dict[str, Any], "changed": dict[str, Any]})


class Dataset(TypedDict):
    """What was evaluated, in numbers of images."""

    name: str
    images: int
    asked: int
    official: int | None
    classes: int
    image_size: int
    unlabelled: int
    skipped: list[dict[str, str]]


class Site(TypedDict):
    """A compressed block."""

    name: str
    index: int
    part: str | None
    stride: int
    tokens_in: int
    tokens_out: int
    compressor: str


class Flops(TypedDict):
    """Cost of one row of a forward."""

    gflops_per_evaluation: float
    baseline_gflops: float
    reduction_percent: float
    by_category: dict[str, float]


class Timing(TypedDict, total=False):
    """Times, and the measurements of `bigain.cost.timing`."""

    seconds: float
    seconds_per_image: float
    resumed_images: int
    clock: str | None
    denoiser: dict[str, Any]
    vae: dict[str, Any]
    peak_memory_bytes: int | None


class Results(TypedDict):
    """Content of `results.json`."""

    schema_version: int
    task: Task
    dataset: Dataset
    model: dict[str, str]
    compressors: list[Compressor]
    sites: list[Site]
    flops: Flops
    timing: Timing
    metrics: dict[str, MetricEstimate]
    evaluations: dict[str, Any]
    protocol: dict[str, Any]
    environment: dict[str, Any]
    fingerprint: str | None
    scheduler: dict[str, Any]
    class_names: NotRequired[list[str]]
    per_class: NotRequired[list[dict[str, int]] | None]
    confusion_matrix: NotRequired[list[list[int]] | None]
    distance_missing: NotRequired[str | None]
    psnr_missing: NotRequired[str | None]
    inception_score_missing: NotRequired[str | None]
    linear_probe_missing: NotRequired[str | None]
    fidelity_to: NotRequired[dict[str, Any]]


class ResponseSite(TypedDict):
    """Energies of a compressed module, by frequencies. `docs/explain.md` explains every key."""

    name: str
    index: int
    module: str
    grid: list[int]
    channels: int
    modes: list[int]
    rows: int
    original: list[float]
    compressed: list[float]
    error: list[float]
    kept: list[float | None]
    destroyed: list[float | None]


class ResponseFile(TypedDict):
    """Content of `frequency_response.json`."""

    schema_version: int
    bands: list[float]
    batches: int
    images: int
    sites: list[ResponseSite]
    not_measured: list[str]


def check(
    path: Path,
    content: Any,
    expected: Any,
    advice: str = "run the command that wrote it again",
    verdict: str = "is damaged",
) -> None:
    """Check the content of a JSON or YAML file: its type is built of TypedDict, dict, list, union, Literal and names.

    Raises:
        InputError: If a value is missing or of another type; `verdict` and `advice` are parts of the message.
    """
    if problem := _problem(content, expected, ""):
        raise InputError(f"{path} {verdict}: {problem}; {advice}")


def _problem(value: Any, expected: Any, key: str) -> str | None:
    """Return the first mismatch, such as `dataset.name is 3, expected str`."""
    origin, arguments = get_origin(expected), get_args(expected)
    kind = dict if is_typeddict(expected) else (int, float) if expected is float else origin or expected
    prefix = f"{key}." if key else ""
    if origin in (Union, UnionType):
        matches = any(_problem(value, argument, key) is None for argument in arguments)
    elif origin is Literal:
        matches = value in arguments
    else:
        # A bool is an int for Python, but not a number in JSON.
        matches = expected is Any or (isinstance(value, kind) and not isinstance(value, bool))
    if not matches:
        return f"{key or 'its content'} is {reprlib.repr(value)}, expected {_type_name(expected)}"
    items: list[tuple[Any, Any, str]] = []
    if is_typeddict(expected):
        if missing := expected.__required_keys__ - value.keys():
            return f"{prefix}{min(missing)} is missing"
        items = [(value[name], hint, prefix + name) for name, hint in get_type_hints(expected).items() if name in value]
    elif kind is dict and value:
        items = [(item, arguments[1], f"{prefix}{name}") for name, item in value.items()]
    elif kind is list and value:
        items = [(item, arguments[0], f"{key}[{number}]") for number, item in enumerate(value)]
    return next(filter(None, (_problem(*entry) for entry in items)), None)


def _type_name(expected: Any) -> str:
    if get_origin(expected) in (Union, UnionType, Literal):
        return " or ".join(map(_type_name, get_args(expected)))
    if isinstance(expected, str):
        return repr(expected)
    return "None" if expected is type(None) else "dict" if is_typeddict(expected) else str(expected.__name__)
