"""The paper's value for a run, where its settings are the paper's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bigain.runs.names import fields_text, setting_text, signed, strength, variant
from bigain.runs.results import Run

EMBEDDED = "embedded model: nothing in the paper compares"

_DATASETS = {
    "Oxford-IIIT Pets": "pets",
    "ImageNet-100": "imagenet100",
    "ImageNet-1K": "imagenet1k",
    "COCO-2017": "coco",
}
# By the last part of a hub id or folder: mirrors have the name of the original.
_MODELS = {"stable-diffusion-2-base": "sd2", "dit-xl-2-512": "dit_xl_2_512"}
_RELEASED = {"blocks": "released"}
_ALPHAS: Mapping[tuple[str, str], Any] = {
    ("sd2", "classification"): 0.9,
    ("sd2", "generation"): {"class": "Linear", "start": 0.8, "end": 1.2},
    ("dit_xl_2_512", "classification"): 0.1,
    ("dit_xl_2_512", "generation"): 0.1,
}
_SAMPLING = {"sd2": ("EulerDiscreteScheduler", 50, 7.5), "dit_xl_2_512": ("DDIMScheduler", 50, 4.0)}
_GENERATED = {"pets": 3669, "imagenet100": 5000, "imagenet1k": 50_000, "coco": 5000}
# Real images behind a distance: all of Pets' images/, and the validation images, of ImageNet-100 or of all classes.
_REFERENCES = {"pets": (7390,), "imagenet100": (5000, 50_000), "imagenet1k": (50_000,), "coco": (5000,)}
_IMAGE_SIZE = 512
_CLASSIFIED = {"pets": 3669, "imagenet100": 5000, "imagenet1k": 2000, "coco": 5000}
# The settings that Table 1 does not print.
_TABLE_1 = {"ToMe": ("ratio", 0.5), "LGTM": ("ratio", 0.5), "SiTo": ("ratio", 0.7)} | dict.fromkeys(
    ("ToDo", "IEKVD"), ("factor", 3.0)
)
_MODULES = {"SA": "self_attn", "CA": "cross_attn", "MLP": "mlp"}
# `map_sample` is what the release computed, and it counted images without labels as wrong.
_METRICS = {"top1": "acc1", "top1_precision_all": "acc1", "top1_precision": "acc1", "map_sample": "map"}
_METRICS |= {"frechet[pytorch-fid]": "fid"}


@dataclass(frozen=True)
class Cell:
    """What a number of the paper belongs to.

    Attributes:
        backbone: `sd2` or `dit_xl_2_512`.
        dataset: `pets`, `imagenet100`, `imagenet1k` or `coco`; empty for costs, which no dataset changes.
        method: Class of the compressor, with `[low]` or `[high]` for FrequencyKV; `none` without.
        modules: What sees merged tokens, sorted; only self-attention in all tables but Table 6.
        strength: `("ratio", 0.5)` or `("factor", 2.0)`.
    """

    backbone: str
    dataset: str
    method: str
    modules: tuple[str, ...] = ("self_attn",)
    strength: tuple[str, float] | None = None


@dataclass(frozen=True)
class PaperValue:
    """What the paper prints for a cell.

    Attributes:
        values: Value and table, ascending by table; tables that repeat a value are left out.
        note: What is known to be inconsistent about it, or None.
        digits: Decimals that the paper prints.
    """

    values: tuple[tuple[float, int], ...]
    note: str | None
    digits: int = 2

    @property
    def text(self) -> str:
        """`79.90 / 79.91†`; the dagger marks an inconsistent value."""
        return " / ".join(f"{value:.{self.digits}f}" for value, _ in self.values) + ("†" if self.note else "")

    def differences(self, mine: float, digits: int = 1) -> str:
        """Return how much larger the measured number is than each value, as text."""
        return " / ".join(signed(mine - value, digits) for value, _ in self.values) + ("†" if self.note else "")


def cell_of(run: Run) -> Cell | str:
    """The cell that a run belongs to, or why it belongs to none."""
    if run.model in ("shapes_dit", "shapes_unet") or run.dataset == "ShapeTextures":
        return EMBEDDED
    backbone = _MODELS.get(Path(run.model).name.lower())
    if backbone is None:
        return f"model {run.model} is not in the paper"
    if run.dataset not in _DATASETS:
        return f"dataset {run.dataset} is not in the paper"
    other = _other_protocol(run, backbone)
    if other:
        return other
    if len(run.compressors) > 1:
        return "several compressors at once are not in the paper"
    dataset = _DATASETS[run.dataset]
    return _compressed(run, backbone, dataset) if run.compressors else Cell(backbone, dataset, "none")


def paper_value(cell: Cell, metric: str) -> PaperValue | None:
    """What the paper prints for a cell.

    Args:
        cell: The cell.
        metric: Name in `results.json`, or `gflops` or `gflops_reduction`.
    """
    name = {"gflops": "gflops", "gflops_reduction": "flops_reduction_percent"}.get(metric) or _METRICS.get(metric)
    if name is None:
        return None
    if name == "gflops":
        cell = Cell(cell.backbone, "", cell.method, cell.modules, cell.strength)
    found = _cells().get((cell, name), ())
    if not found:
        return None
    values: dict[float, int] = {}
    for value, table in sorted(found, key=lambda pair: pair[1]):
        values.setdefault(value, table)
    notes = [note for _, table in found for note in _known(cell, name, table)]
    if len(values) > 1:
        notes.insert(0, " and ".join(f"Table {table} prints {value:.2f}" for value, table in values.items()))
    digits = 1 if name == "flops_reduction_percent" else 2
    return PaperValue(tuple(values.items()), "; ".join(dict.fromkeys(notes)) or None, digits)


def expected_images(run: Run) -> int | None:
    """How many images are behind the paper's numbers for a dataset and task."""
    name = _DATASETS.get(run.dataset, "")
    return (_CLASSIFIED if run.task == "classification" else _GENERATED).get(name)


def _compressed(run: Run, backbone: str, dataset: str) -> Cell | str:
    (compressor,) = run.compressors
    method, unusual = str(compressor["class"]), variant(compressor)
    modules = tuple(sorted(map(str, _listed(unusual.pop("modules", ["self_attn"])))))
    expected: dict[str, Any] = {"where": _RELEASED} if backbone == "dit_xl_2_512" else {}
    if method == "IEKVD":
        expected["alpha"] = _ALPHAS[backbone, run.task]
    if method == "FrequencyKV":
        method = f"FrequencyKV[{unusual.pop('keep', None)}]"
    # The text's destination is `cell`; the release's produced the numbers.
    if method == "LGTM" and unusual.get("destination") == "released":
        del unusual["destination"]
    for name in {**expected, **unusual}:
        if unusual.get(name) != expected.get(name):
            return f"{name} is {_setting(name, unusual)}, in the paper {_setting(name, expected)}"
    return Cell(backbone, dataset, method, modules, strength(run.compressors))


def _setting(name: str, settings: Mapping[str, Any]) -> str:
    if name not in settings:
        return "the usual"
    return fields_text(settings[name]) if name == "where" else setting_text(settings[name])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _other_protocol(run: Run, backbone: str) -> str | None:
    """What of the protocol is not the paper's."""
    protocol = run.results["protocol"]
    size = run.results["dataset"].get("image_size", run.settings.get("data.init_args.image_size", _IMAGE_SIZE))
    if size != _IMAGE_SIZE:
        return f"images of {size} px, in the paper {_IMAGE_SIZE}"
    if run.task == "generation":
        found = tuple(protocol.get(name) for name in ("scheduler", "steps", "guidance"))
        if found != _SAMPLING[backbone]:
            return f"sampled with {found}, in the paper {_SAMPLING[backbone]}"
        count, expected = run.results["dataset"]["images"], expected_images(run)
        # A Frechet distance depends on how many images there are.
        return f"{count:,} images, in the paper {expected:,}" if count != expected else _other_reference(run)
    if protocol.get("race"):
        return "classes leave in a race, in the paper in stages"
    stages = protocol.get("stages")
    used = [len(stage) for stage in stages if isinstance(stage, list)] if isinstance(stages, list) else []
    trials, keep = [sum(used[: i + 1]) for i in range(len(used))], protocol.get("keep")
    three = run.dataset == "ImageNet-1K"
    expected_trials = ([5, 20, 100], [5, 25, 100]) if three else ([5, 20],)
    if trials not in expected_trials or keep != ([50, 10, 1] if three else [5, 1]):
        return f"trials {trials} and keep {keep} are not the paper's"
    for name, usual in (("timesteps", "grid"), ("loss", "l2")):
        if protocol.get(name) != usual:
            return f"{name} is {protocol.get(name)}, in the paper {usual}"
    return None


def _other_reference(run: Run) -> str | None:
    """What of the real images behind a distance is not the paper's; files of pytorch-fid do not tell their number."""
    reference, usual = run.results["protocol"].get("reference"), _REFERENCES[_DATASETS[run.dataset]]
    count = reference.get("n") if isinstance(reference, Mapping) else None
    if count is None or count in usual:
        return None
    return f"distance to {count:,} real images, in the paper {' or '.join(f'{n:,}' for n in usual)}"


@cache
def _cells() -> Mapping[tuple[Cell, str], Sequence[tuple[float, int]]]:
    """Value and table of every printed number, by cell and metric."""
    cells: dict[tuple[Cell, str], list[tuple[float, int]]] = {}
    with Path(__file__).with_name("paper_results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells.setdefault((_cell(row), row["metric"]), []).append((float(row["value"]), int(row["table"])))
    return cells


def _cell(row: Mapping[str, str]) -> Cell:
    method, _, inside = row["method"].rstrip("]").partition("[")
    modules: tuple[str, ...] = ("self_attn",)
    size = (row["setting_name"], float(row["setting"] or 0))
    strength_ = size if row["setting_name"] else None
    if row["table"] == "1":
        strength_ = _TABLE_1.get(method)
    elif row["table"] == "6":
        modules = tuple(sorted(_MODULES[word] for word in inside.split("+")))
    elif method == "FrequencyKV":
        method, strength_ = f"{method}[{inside}]", ("ratio", size[1])
    elif inside.startswith("factor="):
        strength_ = ("factor", float(inside.partition("=")[2]))
    return Cell(row["backbone"], row["dataset"], method, modules, strength_)


def _known(cell: Cell, metric: str, table: int) -> Iterator[str]:
    """What is known to be inconsistent about a printed number."""
    where = (table, cell.dataset, metric)
    if where == (1, "pets", "flops_reduction_percent") and cell.strength == ("factor", 3.0):
        yield "14.2 % is factor 8 (14.17 %), the accuracies are factor 3 (12.84 %)"
    if where == (1, "pets", "flops_reduction_percent") and cell.method == "SiTo":
        yield "Table 1 does not print that its 7 % of SiTo is ratio 0.7"
    if where in ((2, "imagenet100", "fid"), (4, "imagenet100", "fid")):
        yield "the uncompressed distance is 17.64 in Table 2 and 41.37 in Table 4"
    if where == (5, "imagenet100", "fid") and cell.method != "none":
        yield "Table 5's distances of DiT repeat Table 4's of SD 2.0"
    if where == (4, "imagenet1k", "fid") and cell.strength == ("ratio", 0.7):
        yield "LGTM minus ToMe is -0.34 here, -0.56 in one abstract"
    if table == 11:
        yield "Table 11 is headed batch size 4; its FLOPs are batch 1"
