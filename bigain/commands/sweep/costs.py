"""`--dry-run`: what the cells cost, counted without weights; without a dataset, on its official number of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer

from bigain.commands.flops.model import CountedModel
from bigain.commands.prepared import Prepared
from bigain.commands.sweep.cells import Cell
from bigain.commands.sweep.plans import Status, look, reason_of
from bigain.cost.sites import describe
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.runs.directory import check_directory


class _Untrained(Prepared):
    """Without a trainer: costs do not depend on the devices that are here."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class Cost:
    """What a cell takes.

    Attributes:
        cell: The cell.
        status: Whether it is done; `refused` if its directory holds something else.
        refusal: Why.
        images: How many.
        official: Whether that is the official number, the dataset not being here.
        evaluations: Of the network, per image.
        at_most: Whether an image may need fewer: in a race.
        gflops: Per evaluation.
    """

    cell: Cell
    status: Status | Literal["refused"]
    refusal: str | None
    images: int
    official: bool
    evaluations: int
    at_most: bool
    gflops: float

    @property
    def pflops(self) -> float:
        """Of the whole cell, the network alone: neither VAE nor text encoder."""
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
            InputError: If its configuration is wrong, or nobody knows how many images it has.
        """
        cli = _Untrained.of(cell.run.task, cell.command)
        model, data = cli.model, cli.datamodule
        images, official = self._count_images(cli, data)
        evaluations = model.evaluations_per_image(len(data.class_space))
        status, refusal = _state(cell, cli)
        at_most = isinstance(model, DiffusionClassifier) and model.race is not None
        return Cost(
            cell, status, refusal, images, official, evaluations, at_most, self._count_gflops(cli, data.image_size)
        )

    def _count_images(self, cli: Prepared, data: EvalDataModule) -> tuple[int, bool]:
        key = repr(cli.config.predict.data)
        if key not in self._images:
            self._images[key] = _images(data)
        return self._images[key]

    def _count_gflops(self, cli: Prepared, image_size: int) -> float:
        model = f"{cli.config.predict.model.init_args.backbone} {image_size}"
        compressors = cli.compressors()
        key = model + json.dumps([describe(compressor) for compressor in compressors])
        if key not in self._gflops:
            if model not in self._models:
                self._models[model] = CountedModel.of_backbone(cli.model.backbone, image_size)
            self._gflops[key] = self._models[model].count(*compressors).total / 1e9
        return self._gflops[key]


def _state(cell: Cell, cli: Prepared) -> tuple[Status | Literal["refused"], str | None]:
    """How far a cell is, or why a sweep would not begin it."""
    try:
        check_directory(cell.directory, cli.config.predict)
    except InputError as error:
        return "refused", str(error)
    except OSError:
        # Of a directory that cannot be read, `look` tells the state.
        pass
    return look(cell.directory, cli.fingerprint)[0], None


def _images(data: EvalDataModule) -> tuple[int, bool]:
    """How many images the settings choose, and whether that is the official number."""
    try:
        data.setup("predict")
    except InputError:
        expected = data.limit or data.expected_images
        if expected is None and data.official_images is not None and data.per_class is not None:
            expected = min(data.official_images, data.per_class * len(data.class_space))
        # An id file has its own number, and has to fit the dataset.
        if expected is None or data.subset is not None:
            raise
        return expected, True
    return len(data.items), False


def costs_told(cells: Sequence[Cell]) -> tuple[str, bool]:
    """Costs of cells as text, and whether all could be counted and none is refused.

    Raises:
        InputError: If none could.
    """
    counter = _Counter()
    costs: list[Cost] = []
    refused: list[str] = []
    for cell in cells:
        try:
            costs.append(counter.cost(cell))
        except Exception as error:  # noqa: BLE001 -- classes of a configuration may be the user's own
            refused.append(f"{cell.name} cannot be counted: {reason_of(error)}")
    if refused and not costs:
        # Mostly one reason, said by every cell.
        raise InputError(f"no cell can be counted; {refused[0]}")
    refused += [f"{cost.cell.name} is refused: {cost.refusal}" for cost in costs if cost.refusal]
    return "\n".join([*_table(costs), *refused]), not refused


def _table(costs: Sequence[Cost]) -> list[str]:
    head = ("directory", "state", "images", "evaluations", "GFLOPs", "PFLOPs")
    rows = [head, *map(_row, costs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        padded = [*(row[i].ljust(widths[i]) for i in (0, 1)), *(row[i].rjust(widths[i]) for i in range(2, len(head)))]
        lines.append("  ".join(padded))
    left = [cost for cost in costs if cost.status not in ("finished", "refused")]
    lines.append(f"{len(costs)} cells, {_total(costs)}; left to do: {len(left)} cells, {_total(left)}")
    lines.append("evaluations are per image, GFLOPs per evaluation, of the network alone")
    if any(cost.at_most for cost in costs):
        lines.append("<= is the most that a race can take; how many it took is in results.json")
    if any(cost.official for cost in costs):
        lines.append("* the dataset cannot be read here: its official number, or as many as the settings ask for")
    return lines


def _row(cost: Cost) -> tuple[str, ...]:
    images = f"{cost.images:,}{'*' if cost.official else ''}"
    return (
        str(cost.cell.directory),
        cost.status,
        images,
        f"{'<=' if cost.at_most else ''}{cost.evaluations:,}",
        f"{cost.gflops:,.4g}" if cost.gflops < 1 else f"{cost.gflops:,.3f}",
        f"{cost.pflops:,.4g}" if cost.pflops < 1000 else f"{cost.pflops:,.0f}",
    )


def _total(costs: Sequence[Cost]) -> str:
    total = sum(cost.pflops for cost in costs)
    return f"{total:,.4g} PFLOPs" if total < 1000 else f"{total:,.0f} PFLOPs"
