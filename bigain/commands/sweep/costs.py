"""`--dry-run`: state and cost of the cells, counted without weights and, if need be, without the dataset."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

from tqdm import tqdm

from bigain.commands.flops.model import CountedModel
from bigain.commands.lightning_cli import Prepared
from bigain.commands.parsing import Outcome
from bigain.commands.sweep.plans import Plan, reason_of
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.report.tables import Table
from bigain.runs.numbers import counted
from bigain.tasks.progress import duration

T = TypeVar("T")
_COLUMNS = ("directory", "state", "images", "evaluations", "GFLOPs", "PFLOPs")


def _count(prepared: Prepared, cache: dict[str, Any]) -> tuple[tuple[str, ...], float]:
    """Return images, evaluations per image, GFLOPs and PFLOPs of a cell as text, and its PFLOPs.

    Cells have datasets, models and compressors in common: `cache` keeps the counts.
    """

    def cached(key: str, count: Callable[[], T]) -> T:
        if key not in cache:
            cache[key] = count()
        result: T = cache[key]
        return result

    data, model, config = prepared.datamodule, prepared.model, prepared.config.predict
    images, official = cached(f"{config.data}", lambda: _images(data))
    network = f"{config.model.init_args.backbone} {data.image_size}"
    counted = cached(network, lambda: CountedModel.of_backbone(model.backbone, data.image_size))
    compressors = prepared.compressors()
    compressed = network + json.dumps([compressor.description() for compressor in compressors])
    gflops = cached(compressed, lambda: counted.count(compressors).total / 1e9)
    evaluations = model.evaluations_per_image(len(data.class_space))
    at_most = "<=" if isinstance(model, DiffusionClassifier) and model.race is not None else ""
    pflops = images * evaluations * gflops / 1e6
    number = f"{gflops:,.4g}" if gflops < 1 else f"{gflops:,.3f}"
    return (f"{images:,}{'*' * official}", f"{at_most}{evaluations:,}", number, _rounded(pflops)), pflops


def cost_report(plans: Sequence[Plan]) -> Outcome:
    """Return state and cost of cells, complete if all could be counted; raise an InputError if none could be."""
    cache: dict[str, Any] = {}
    rows, pflops, unfinished = [], [], []
    speeds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    uncounted, reasons = [], []
    for plan in tqdm(plans, "cells counted", leave=False, disable=None):
        if plan.reason:
            reasons.append(f"{plan.cell.name} is {plan.status}: {plan.reason}")
        if plan.prepared is None:
            continue
        try:
            row, cost = _count(plan.prepared, cache)
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            uncounted.append(f"{plan.cell.name} cannot be counted: {reason_of(error)}")
            continue
        rows.append((str(plan.directory), plan.status, *row))
        pflops.append(cost)
        group = plan.prepared.model.backbone.model, plan.cell.task
        if plan.status != "finished":
            unfinished.append((group, cost))
        if plan.run is not None:
            results = plan.run.results
            speeds[group].append(results["timing"]["seconds_per_image"] * results["dataset"]["images"] / cost)
    if uncounted and not rows:
        # Usually all cells have the same reason.
        raise InputError(f"no cell can be counted; {uncounted[0]}")
    total = f"{_total(pflops)}; left to do: {_total([cost for _, cost in unfinished])}"
    if unfinished and all(group in speeds for group, _ in unfinished):
        seconds = sum(cost * median(speeds[group]) for group, cost in unfinished)
        total += f", about {duration(seconds)} on one device at the speed of the finished cells"
    if uncounted:
        total += f"; not in these: {counted(len(uncounted), 'cell')} that cannot be counted"
    lines = [Table(_COLUMNS, rows, "llrrrr").plain(), total]
    lines.append("evaluations are per image; GFLOPs are per evaluation, of the network alone")
    if any(evaluations.startswith("<=") for _, _, _, evaluations, _, _ in rows):
        lines.append("<= is the most that a race can need; results.json has the number that it needed")
    if any(images.endswith("*") for _, _, images, _, _, _ in rows):
        lines.append("* the dataset cannot be read here: its official number, or the number in the settings")
    complete = not uncounted and all(plan.prepared or plan.status == "n/a" for plan in plans)
    return Outcome("".join(f"{line}\n" for line in [*lines, *uncounted, *reasons]), complete)


def _images(data: EvalDataModule) -> tuple[int, bool]:
    """Return the number of images, and whether that is the official number since the dataset cannot be read."""
    try:
        data.setup("predict")
    except InputError:
        expected = data.limit or data.expected_images
        if expected is None and data.official_images is not None and data.per_class is not None:
            expected = min(data.official_images, data.per_class * len(data.class_space))
        # The number of an id file is known only with the dataset.
        if expected is None or data.subset is not None:
            raise
        return expected, True
    return len(data.items), False


def _total(pflops: Sequence[float]) -> str:
    return f"{counted(len(pflops), 'cell')}, {_rounded(sum(pflops))} PFLOPs"


def _rounded(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
