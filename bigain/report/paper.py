"""The paper's values for runs with the paper's settings."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bigain.runs.names import setting_text, strength, variant
from bigain.runs.numbers import signed
from bigain.runs.results import Run

EMBEDDED = "embedded model: nothing in the paper compares"

_DATASETS = {
    "Oxford-IIIT Pets": "pets",
    "ImageNet-100": "imagenet100",
    "ImageNet-1K": "imagenet1k",
    "COCO-2017": "coco",
}
# By the last part of a hub id or folder: mirrors keep the name of the original.
_MODELS = {"stable-diffusion-2-base": "sd2", "dit-xl-2-512": "dit_xl_2_512"}
# Settings of the paper, as results.json has them; a tuple lists alternatives.
_CLASSIFICATION = {"elimination": "stages", "trials": ([5, 20],), "keep": [5, 1], "timesteps": "grid", "loss": "l2"}
_IMAGENET_1K = {"trials": ([5, 20, 100], [5, 25, 100]), "keep": [50, 10, 1]}
_SAMPLING = {
    "sd2": {"scheduler": "EulerDiscreteScheduler", "steps": 50, "guidance": 7.5},
    "dit_xl_2_512": {"scheduler": "DDIMScheduler", "steps": 50, "guidance": 4.0},
}
_ALPHAS: Mapping[tuple[str, str], Any] = {
    ("sd2", "classification"): 0.9,
    ("sd2", "generation"): {"class": "Linear", "start": 0.8, "end": 1.2},
    ("dit_xl_2_512", "classification"): 0.1,
    ("dit_xl_2_512", "generation"): 0.1,
}
_IMAGES = {
    "classification": {"pets": 3669, "imagenet100": 5000, "imagenet1k": 2000, "coco": 5000},
    "generation": {"pets": 3669, "imagenet100": 5000, "imagenet1k": 50_000, "coco": 5000},
}
# Real images behind a distance: all of Pets' images/, and the validation images, of ImageNet-100 or of all classes.
_REAL_IMAGES = {"pets": (7390,), "imagenet100": (5000, 50_000), "imagenet1k": (50_000,), "coco": (5000,)}
_SECONDS = "seconds_per_batch_of_4"
_MIXED = "the paper's mAP ranks means of 5 trials among means of 20, as map_released does and map_sample does not"
# Columns of the file of the paper's numbers, with their task.
_PRINTED = {"acc1": "classification", "map": "classification", "fid": "generation"}
_PRINTED |= dict.fromkeys(("flops_reduction_percent", "gflops", "seconds_per_batch_of_4_rtx4090"), "efficiency")
_MODULES = {"SA": "self_attn", "CA": "cross_attn", "MLP": "mlp"}
# The release counted images without labels as wrong.
_METRICS = {"top1": "acc1", "top1_precision_all": "acc1", "top1_precision": "acc1"}
_METRICS |= {"map_released": "map", "map_sample": "map", _SECONDS: "seconds_per_batch_of_4_rtx4090"}
_METRICS |= {"frechet[pytorch-fid]": "fid", "gflops": "gflops", "gflops_reduction": "flops_reduction_percent"}


@dataclass(frozen=True)
class Cell:
    """The settings behind a number of the paper.

    Attributes:
        backbone: `sd2` or `dit_xl_2_512`.
        dataset: `pets`, `imagenet100`, `imagenet1k` or `coco`; empty for costs, which no dataset changes.
        method: Class of the compressor, with `[low]` or `[high]` for FrequencyKV; `none` without.
        modules: Modules that see merged tokens, sorted; self-attention alone in all tables but Table 6.
        strength: `("ratio", 0.5)` or `("factor", 2.0)`.
        reading: `code` or `text`, where the released code and the text of the paper differ; else empty.
    """

    backbone: str
    dataset: str
    method: str
    modules: tuple[str, ...] = ("self_attn",)
    strength: tuple[str, float] | None = None
    reading: str = field(default="", compare=False)


@dataclass(frozen=True)
class PaperValue:
    """What the paper prints for a cell.

    Attributes:
        values: Value and table, ascending by table; tables that repeat a value are left out.
        note: Known inconsistencies, or None.
        digits: Decimals that the paper prints.
        reading: That of its cell.
    """

    values: tuple[tuple[float, int], ...]
    note: str | None
    digits: int = 2
    reading: str = ""

    @property
    def text(self) -> str:
        """`79.90 / 79.91†`, `78.38 (code)`; the dagger marks an inconsistent value."""
        values = " / ".join(f"{value:.{self.digits}f}" for value, _ in self.values)
        return values + ("†" if self.note else "") + (f" ({self.reading})" if self.reading else "")

    def differences(self, measured: float, digits: int) -> str:
        """Format the measured number minus each value."""
        return " / ".join(signed(measured - value, digits) for value, _ in self.values) + ("†" if self.note else "")


def cell_of(run: Run, costs: bool = False) -> Cell | str:
    """Return the cell with the settings of a run, or the reason why there is none.

    Costs depend neither on the number of images nor on what differs between the text and the code of the paper.
    """
    if run.model in ("shapes_dit", "shapes_unet", "shapes_flow") or run.dataset == "ShapeTextures":
        return EMBEDDED
    backbone, dataset = _MODELS.get(Path(run.model).name.lower()), _DATASETS.get(run.dataset)
    if backbone is None:
        return f"model {run.model} is not in the paper"
    if dataset is None:
        return f"dataset {run.dataset} is not in the paper"
    if len(run.compressors) > 1:
        return "several compressors at once are not in the paper"
    method, modules, reading, changed = "none", ["self_attn"], "", {}
    expected: dict[str, Any] = {}
    for compressor in run.compressors:
        method, changed = str(compressor["class"]), variant(compressor)
        modules = changed.pop("modules", modules)
        expected |= {"where": {"blocks": "released"}} if backbone == "dit_xl_2_512" else {}
        expected |= {"alpha": _ALPHAS[backbone, run.task]} if method == "IEKVD" else {}
        setting, default, readings = _readings(method, run.task, backbone)
        value = changed.pop(setting, default)
        if value in readings or costs:
            reading = readings.get(value, "")
        elif readings:
            changed[setting], expected[setting] = value, (*readings,)
        if method == "FrequencyKV":
            method = f"FrequencyKV[{changed.pop('keep', None)}]"
        elif method == "DiPGO":
            method = "DiP-GO"
        # Masks are made by the user; those of the paper are unknown.
        changed.pop("masks", None)
    difference = _difference(*_protocols(run, backbone, dataset, costs)) or _difference(changed, expected)
    if difference:
        return difference
    modules = modules if isinstance(modules, list) else [modules]
    return Cell(backbone, dataset, method, tuple(sorted(map(str, modules))), strength(run.compressors), reading)


def _readings(method: str, task: str, backbone: str) -> tuple[str, Any, Mapping[Any, str]]:
    """Return a setting in which the paper's code and text differ, our default, and who uses each of its values."""
    if method in ("LGTM", "CAM"):
        return "destination", "cell", {"cell": "text", "released": "code"}
    if method == "ToMe" and task == "classification":
        # Our default, one draw for all classes, is in neither the code nor the text.
        return "destination", "random", {"redrawn": "code"}
    if task == "generation" and backbone == "sd2" and method in ("ToDo", "AveragePool", "IEKVD", "FrequencyKV"):
        return "skip_zero", False, {False: "text", True: "code"}
    return "", None, {}


def _protocols(run: Run, backbone: str, dataset: str, costs: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run without its compressor, and those of the paper."""
    protocol = run.results["protocol"]
    if run.task == "generation":
        expected: dict[str, Any] = {"image size": 512, **_SAMPLING[backbone]}
        # A Frechet distance depends on the numbers of images; files of pytorch-fid do not hold that of the real ones.
        reference = protocol.get("reference")
        real = (isinstance(reference, Mapping) and reference.get("n")) or _REAL_IMAGES[dataset][0]
        run_settings = {**protocol, "number of images": run.results["dataset"]["images"], "number of real images": real}
        if not costs:
            expected |= {"number of images": expected_images(run), "number of real images": _REAL_IMAGES[dataset]}
    else:
        expected = {"image size": 512, **_CLASSIFICATION, **(_IMAGENET_1K if dataset == "imagenet1k" else {})}
        trials = list(itertools.accumulate(map(len, protocol.get("stages") or [])))
        run_settings = {**protocol, "elimination": "race" if protocol.get("race") else "stages", "trials": trials}
    run_settings["image size"] = run.results["dataset"]["image_size"]
    return {name: run_settings.get(name) for name in expected}, expected


def _difference(settings: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Describe the first setting that differs from the expected one."""
    for name in {**expected, **settings}:
        value, paper = settings.get(name), expected.get(name)
        alternatives = paper if isinstance(paper, tuple) else (paper,)
        if value not in alternatives:
            ours, *printed = ("the usual" if x is None else setting_text(name, x) for x in (value, *alternatives))
            return f"{name} is {ours}, in the paper {' or '.join(printed)}"
    return None


def paper_value(cell: Cell, metric: str) -> PaperValue | None:
    """Return what the paper prints for a cell.

    Args:
        cell: The cell.
        metric: A metric of `results.json`, or a cost: `gflops`, `gflops_reduction`, `seconds_per_batch_of_4`, or
            `acceleration`, the quotient of two such seconds.
    """
    if metric == "acceleration":
        plain, compressed = (paper_value(x, _SECONDS) for x in (replace(cell, method="none", strength=None), cell))
        if plain is None or compressed is None:
            return None
        seconds, table = compressed.values[0]
        return PaperValue(((plain.values[0][0] / seconds, table),), compressed.note)
    name = _METRICS.get(metric, "")
    if name in ("gflops", _METRICS[_SECONDS]):
        cell = replace(cell, dataset="")
    lines = _cells().get((cell, name), ())
    if not lines:
        return None
    values: dict[float, int] = {}
    for value, table, _ in sorted(lines, key=lambda line: line[1]):
        values.setdefault(value, table)
    notes = [note for *_, note in lines if note]
    if len(values) > 1:
        notes.insert(0, " and ".join(f"Table {table} prints {value:.2f}" for value, table in values.items()))
    if metric == "map_sample":
        notes.append(_MIXED)
    digits = 1 if name == "flops_reduction_percent" else 2
    reading = cell.reading if name in ("acc1", "map", "fid") else ""
    return PaperValue(tuple(values.items()), "; ".join(dict.fromkeys(notes)) or None, digits, reading)


def expected_images(run: Run) -> int | None:
    """Return the number of images behind the paper's numbers for a dataset and task."""
    return _IMAGES[run.task].get(_DATASETS.get(run.dataset, ""))


@cache
def _cells() -> Mapping[tuple[Cell, str], Sequence[tuple[float, int, str]]]:
    """Return value, table and known inconsistency of every printed number, by cell and metric."""
    cells: dict[tuple[Cell, str], list[tuple[float, int, str]]] = {}
    for row in printed():
        method, _, inside = row["method"].rstrip("]").partition("[")
        modules: tuple[str, ...] = ("self_attn",)
        size = (row["setting_name"], float(row["setting"])) if row["setting_name"] else None
        if row["table"] == "6":
            modules = tuple(sorted(_MODULES[word] for word in inside.split("+")))
        elif method == "FrequencyKV" and size:
            method, size = f"{method}[{inside}]", ("ratio", size[1])
        elif inside.startswith("factor="):
            size = ("factor", float(inside.partition("=")[2]))
        cell = Cell(row["backbone"], row["dataset"], method, modules, size)
        cells.setdefault((cell, row["metric"]), []).append((float(row["value"]), int(row["table"]), row["note"]))
    return cells


def printed() -> Iterator[dict[str, str]]:
    """Yield the numbers that the paper prints: the columns of their cell, `task`, `metric`, `value` and `note`.

    `setting` is what the paper prints, or in Table 1, which prints none, what reproduces its FLOPs.
    """
    with Path(__file__).with_name("paper_results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for metric, task in _PRINTED.items():
                if row[metric]:
                    # The notes are about distances and costs.
                    note = "" if task == "classification" else row["note"]
                    yield {**row, "task": task, "metric": metric, "value": row[metric], "note": note}
