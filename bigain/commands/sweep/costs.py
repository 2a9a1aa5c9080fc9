"""`--dry-run`: state and cost of the cells, counted without weights and, if need be, without the dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from bigain.commands.flops.model import CountedModel
from bigain.commands.lightning_cli import Prepared
from bigain.commands.sweep.cells import Cell
from bigain.commands.sweep.plans import State, reason_of, state_of
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.report.tables import Table
from bigain.runs.directory import check_directory


class _WithoutTrainer(Prepared):
    """Costs do not depend on the devices of this machine."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class Cost:
    """State and cost of a cell.

    Attributes:
        cell: The cell.
        state: Its state on disk; `refused` if its directory holds something else.
        images: Number of images.
        official: Whether that is the official number, since the dataset cannot be read here.
        evaluations: Of the network, per image.
        at_most: Whether an image may need fewer, as in a race.
        gflops: Of the network alone, per evaluation.
    """

    cell: Cell
    state: State
    images: int
    official: bool
    evaluations: int
    at_most: bool
    gflops: float

    @property
    def pflops(self) -> float:
        """Of the whole cell, without VAE and text encoder."""
        return self.images * self.evaluations * self.gflops / 1e6


class _Counter:
    """Counts cells, and what several have in common once."""

    def __init__(self) -> None:
        self._models: dict[str, CountedModel] = {}
        self._gflops: dict[str, float] = {}
        self._images: dict[str, tuple[int, bool]] = {}

    def cost(self, cell: Cell) -> Cost:
        """Count a cell.

        Raises:
            InputError: If its configuration is invalid, or the number of its images is unknown.
        """
        prepared = _WithoutTrainer.of(cell.run.task, cell.command)
        config, model, data = prepared.config.predict, prepared.model, prepared.datamodule
        if repr(config.data) not in self._images:
            self._images[repr(config.data)] = _images(data)
        evaluations = model.evaluations_per_image(len(data.class_space))
        at_most = isinstance(model, DiffusionClassifier) and model.race is not None
        gflops = self._count_gflops(prepared, data.image_size)
        return Cost(cell, _state(cell, prepared), *self._images[repr(config.data)], evaluations, at_most, gflops)

    def _count_gflops(self, prepared: Prepared, image_size: int) -> float:
        model = f"{prepared.config.predict.model.init_args.backbone} {image_size}"
        compressors = prepared.compressors()
        key = model + json.dumps([compressor.description() for compressor in compressors])
        if key not in self._gflops:
            if model not in self._models:
                self._models[model] = CountedModel.of_backbone(prepared.model.backbone, image_size)
            self._gflops[key] = self._models[model].count(*compressors).total / 1e9
        return self._gflops[key]


def _state(cell: Cell, prepared: Prepared) -> State:
    try:
        check_directory(cell.directory, prepared.config.predict)
    except InputError as error:
        return State("refused", str(error))
    except OSError:
        # `state_of` reports that the directory cannot be read.
        pass
    return state_of(cell, prepared.fingerprint)


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


def cost_report(cells: Sequence[Cell]) -> tuple[str, bool]:
    """Return state and cost of cells as text, and whether all could be counted and none is refused.

    Raises:
        InputError: If none could be counted.
    """
    counter = _Counter()
    costs: list[Cost] = []
    uncounted: list[str] = []
    for cell in cells:
        try:
            costs.append(counter.cost(cell))
        except Exception as error:  # noqa: BLE001 -- a configuration may name the user's own classes
            uncounted.append(f"{cell.name} cannot be counted: {reason_of(error)}")
    if uncounted and not costs:
        # Usually all cells have the same reason.
        raise InputError(f"no cell can be counted; {uncounted[0]}")
    reasons = [f"{cost.cell.name} is {cost.state.status}: {cost.state.reason}" for cost in costs if cost.state.reason]
    complete = not uncounted and all(cost.state.status != "refused" for cost in costs)
    return "\n".join([*_table(costs), *uncounted, *reasons]), complete


def _table(costs: Sequence[Cost]) -> list[str]:
    head = ("directory", "state", "images", "evaluations", "GFLOPs", "PFLOPs")
    lines = [Table(head, [_row(cost) for cost in costs], "llrrrr").plain()]
    left = [cost for cost in costs if cost.state.status not in ("finished", "refused")]
    lines.append(f"{len(costs)} cells, {_total(costs)}; left to do: {len(left)} cells, {_total(left)}")
    lines.append("evaluations are per image; GFLOPs are per evaluation, of the network alone")
    if any(cost.at_most for cost in costs):
        lines.append("<= is the most that a race can need; results.json has the number that it needed")
    if any(cost.official for cost in costs):
        lines.append("* the dataset cannot be read here: its official number, or the number in the settings")
    return lines


def _row(cost: Cost) -> tuple[str, ...]:
    return (
        str(cost.cell.directory),
        cost.state.status,
        f"{cost.images:,}{'*' if cost.official else ''}",
        f"{'<=' if cost.at_most else ''}{cost.evaluations:,}",
        f"{cost.gflops:,.4g}" if cost.gflops < 1 else f"{cost.gflops:,.3f}",
        _rounded(cost.pflops),
    )


def _total(costs: Sequence[Cost]) -> str:
    return f"{_rounded(sum(cost.pflops for cost in costs))} PFLOPs"


def _rounded(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
