"""The evaluation DataModule: items with stable ids, subsets, limits, and one predict loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.tokens.randomness import stable_hash


@dataclass(frozen=True)
class Item:
    """One image to evaluate.

    Attributes:
        image_id: Stable name: path relative to the dataset root, or the dataset's own id.
        label: Class index.
    """

    image_id: str
    label: int


class Batch(TypedDict):
    """What the predict loader yields: `(b, 3, s, s)` uint8 in [0, 255], `(b,)` int64, and b ids."""

    image: Tensor
    label: Tensor
    image_id: list[str]


class _Images(Dataset[dict[str, object]]):
    def __init__(self, data: EvalDataModule, items: Sequence[Item]) -> None:
        self.data = data
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, object]:
        item = self.items[index]
        return {"image": self.data.read_image(item), "label": item.label, "image_id": item.image_id}


class EvalDataModule(LightningDataModule, ABC):
    """A dataset to evaluate on. Subclasses say what the items are and how one is read.

    Attributes:
        items: The chosen items in evaluation order, after `setup`.
    """

    name: str
    items: list[Item]

    def __init__(self, batch_size: int, num_workers: int, subset: str | None, limit: int | None, seed: int) -> None:
        """Remember the settings; nothing is read here.

        Args:
            batch_size: Images per batch; results do not depend on it.
            num_workers: Processes that decode images.
            subset: File with one image id per line; only these are evaluated.
            limit: Evaluate this many images, spread evenly over the classes, chosen by `seed`.
            seed: Of `limit`.
        """
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"batch_size must be at least 1 and num_workers 0, got {batch_size} and {num_workers}")
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1, not {limit}; leave it out to evaluate all images")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.subset = subset
        self.limit = limit
        self.seed = seed

    @property
    @abstractmethod
    def class_space(self) -> ClassSpace:
        """The classes, in label order."""

    @property
    def official_images(self) -> int | None:
        """How many images the official split has, where there is one."""
        return None

    @abstractmethod
    def find_items(self) -> list[Item]:
        """All items of the split in a fixed order; may read lists, never images.

        Raises:
            InputError: If the dataset is missing or inconsistent.
        """

    @abstractmethod
    def read_image(self, item: Item) -> Tensor:
        """One preprocessed image. `(3, s, s)`, uint8 in [0, 255].

        Raises:
            InputError: If it cannot be decoded; the message names the file.
        """

    def setup(self, stage: str) -> None:
        items = self.find_items()
        twice = [image_id for image_id, count in Counter(item.image_id for item in items).items() if count > 1]
        if twice:
            raise InputError(f"{self.name} lists {twice[0]} more than once ({len(twice)} such images)")
        if self.subset is not None:
            items = _only(items, Path(self.subset), self.name)
        if self.limit is not None:
            items = stratified(items, self.limit, self.seed)
        if not items:
            raise InputError(f"no image of {self.name} is left to evaluate")
        self.items = items

    def predict_dataloader(self) -> DataLoader[dict[str, object]]:
        return DataLoader(
            _Images(self, self.items),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )


def _only(items: list[Item], path: Path, name: str) -> list[Item]:
    """The items that an id file names, in dataset order."""
    if not path.is_file():
        raise InputError(f"subset file {path} does not exist; expected one image id per line")
    wanted = [line.strip() for line in read_lines(path) if line.strip()]
    known = {item.image_id for item in items}
    absent = [image_id for image_id in wanted if image_id not in known]
    if absent:
        raise InputError(
            f"{path} names {absent[0]!r}, which is not in {name} ({len(absent)} of {len(wanted)} ids are not); "
            + (f"its ids look like {items[0].image_id!r}" if items else "it lists no image at all")
        )
    chosen = set(wanted)
    if len(chosen) < len(wanted):
        raise InputError(f"{path} names {len(wanted) - len(chosen)} ids twice")
    return [item for item in items if item.image_id in chosen]


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def stratified(items: list[Item], limit: int, seed: int) -> list[Item]:
    """Choose `limit` items, classes as equally as possible, by the smallest hash of (seed, id); order is kept.

    Raises:
        InputError: If there are fewer items than asked for.
    """
    if limit > len(items):
        raise InputError(f"limit asks for {limit} images, but there are {len(items)}")
    ranked = sorted(range(len(items)), key=lambda i: stable_hash(f"{seed}/{items[i].image_id}"))
    taken: dict[int, int] = {}
    turns = []
    for i in ranked:
        turn = taken.get(items[i].label, 0)
        taken[items[i].label] = turn + 1
        # All classes' first picks come before any second pick.
        turns.append((turn, i))
    chosen = sorted(i for _, i in sorted(turns, key=lambda pair: pair[0])[:limit])
    return [items[i] for i in chosen]
