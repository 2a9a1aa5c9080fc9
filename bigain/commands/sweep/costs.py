"""`--dry-run`: state and cost of the cells, counted without weights and, if need be, without the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from bigain.commands.flops.model import CountedModel
from bigain.commands.lightning_cli import Prepared
from bigain.commands.parsing import Outcome
from bigain.commands.sweep.plans import Plan, State, reason_of
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.report.tables import Table


class WithoutTrainer(Prepared):
    """Costs do not depend on the devices of this machine."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class Cost:
    """State and cost of a cell.

    Attributes:
        directory: Run directory.
        status: Its state.
        images: Number of images.
        official: Whether that is the official number, since the dataset cannot be read here.
        evaluations: Of the network, per image.
        at_most: Whether an image may need fewer, as in a race.
        gflops: Of the network alone, per evaluation.
    """

    directory: str
    status: str
    images: int
    official: bool
    evaluations: int
    at_most: bool
    gflops: float

    @property
    def pflops(self) -> float:
        """Of the whole cell, without VAE and text encoder."""
        return self.images * self.evaluations * self.gflops / 1e6

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        images = f"{self.images:,}{'*' if self.official else ''}"
        evaluations = f"{'<=' if self.at_most else ''}{self.evaluations:,}"
        gflops = f"{self.gflops:,.4g}" if self.gflops < 1 else f"{self.gflops:,.3f}"
        return self.directory, self.status, images, evaluations, gflops, _rounded(self.pflops)


def cost_report(plans: Mapping[str, Plan], refused: Mapping[str, State]) -> Outcome:
    """Return state and cost of cells; complete if all could be counted and none is refused.

    Raises:
        InputError: If none could be counted.
    """
    models: dict[str, CountedModel] = {}
    gflops: dict[str, float] = {}
    images: dict[str, tuple[int, bool]] = {}
    costs: list[Cost] = []
    reasons = [f"{name} is refused: {state.reason}" for name, state in refused.items()]
    uncounted = []
    for name, plan in plans.items():
        state, prepared = plan.state, plan.prepared
        if state.reason:
            reasons.append(f"{name} is {state.status}: {state.reason}")
        try:
            data, model = prepared.datamodule, prepared.model
            # Cells have datasets, models and compressors in common; each is counted once.
            key = repr(prepared.config.predict.data)
            images[key] = images.get(key) or _images(data)
            network = f"{prepared.config.predict.model.init_args.backbone} {data.image_size}"
            compressors = prepared.compressors()
            compressed = network + json.dumps([compressor.description() for compressor in compressors])
            if network not in models:
                models[network] = CountedModel.of_backbone(model.backbone, data.image_size)
            if compressed not in gflops:
                gflops[compressed] = models[network].count(*compressors).total / 1e9
            evaluations = model.evaluations_per_image(len(data.class_space))
            race = isinstance(model, DiffusionClassifier) and model.race is not None
            directory = str(plan.cell.directory)
            costs.append(Cost(directory, state.status, *images[key], evaluations, race, gflops[compressed]))
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            uncounted.append(f"{name} cannot be counted: {reason_of(error)}")
    if uncounted and not costs:
        # Usually all cells have the same reason.
        raise InputError(f"no cell can be counted; {uncounted[0]}")
    text = "\n".join([*_table(costs), *uncounted, *reasons])
    return Outcome(f"{text}\n", not uncounted and not refused)


def _images(data: EvalDataModule) -> tuple[int, bool]:
    """Return the number of images, and whether that is the official number."""
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


def _table(costs: Sequence[Cost]) -> list[str]:
    head = ("directory", "state", "images", "evaluations", "GFLOPs", "PFLOPs")
    left = [cost for cost in costs if cost.status != "finished"]
    lines = [Table(head, [cost.row for cost in costs], "llrrrr").plain()]
    lines.append(f"{len(costs)} cells, {_total(costs)}; left to do: {len(left)} cells, {_total(left)}")
    lines.append("evaluations are per image; GFLOPs are per evaluation, of the network alone")
    if any(cost.at_most for cost in costs):
        lines.append("<= is the most that a race can need; results.json has the number that it needed")
    if any(cost.official for cost in costs):
        lines.append("* the dataset cannot be read here: its official number, or the number in the settings")
    return lines


def _total(costs: Sequence[Cost]) -> str:
    return f"{_rounded(sum(cost.pflops for cost in costs))} PFLOPs"


def _rounded(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
