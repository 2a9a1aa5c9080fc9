"""The base class of all evaluation datasets: items with stable ids, a selection of them, one predict loader."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.data.class_space import ClassSpace
from bigain.data.latent_cache import LatentCache
from bigain.data.loader import Batch, RankLoader
from bigain.data.parquet import ParquetRow
from bigain.data.reading import decode_image, read_file
from bigain.data.selection import Item, per_class, read_subset, stratified
from bigain.errors import InputError, check_choice
from bigain.runs.numbers import counted

OnBadImage = Literal["stop", "skip"]

_log = logging.getLogger(__name__)


def digest_of(content: bytes) -> str:
    """Return a hash of an image file, as logs hold it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class EvalDataModule(LightningDataModule, ABC):
    """A dataset to evaluate on. Subclasses list the items and provide the encoded image of each.

    Attributes:
        items: The selected items in evaluation order, after `setup`.
        files: Image file of each id, a path or a `ParquetRow`, for the default `read_bytes`; `find_items` sets it.
        notes: What is unusual about the files, such as which are not read; `find_items` sets it, `setup` logs it.
        finished: Ids of images that an interrupted run has finished; the loader skips them unread.
        latents: Cache of encoded images, or None.
        read_images: Whether the loader reads images; generation needs the items only.
    """

    name: str
    items: list[Item]

    def __init__(
        self,
        image_size: int = 512,
        batch_size: int = 8,
        num_workers: int = 4,
        subset: str | None = None,
        per_class: int | None = None,
        limit: int | None = None,
        classes: str | None = None,
        on_bad_image: OnBadImage = "stop",
        seed: int = 0,
    ) -> None:
        """Store the settings; nothing is read yet.

        Args:
            image_size: Side of the preprocessed images in px; 512 for SD 2.0 and DiT-XL/2-512.
            batch_size: Images per batch; results do not depend on it.
            num_workers: Processes that read and decode images.
            subset: File with one image id per line, such as a run's `images.txt`; only these images are evaluated.
            per_class: Evaluate at most this many images of each class (of several, the first), those with the smallest
                hash of (seed, id).
            limit: Evaluate this many images, spread evenly over the classes, selected by `seed`.
            classes: File with one class per line, by name, WordNet id or folder; only these are offered as answers, and
                only their images are evaluated. Their labels in a class-conditional model stay the same.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Seed of `per_class` and `limit`. Commands set it: `--seed`.

        Raises:
            InputError: If a number is out of range.
        """
        super().__init__()
        numbers = {"image_size": image_size, "batch_size": batch_size, "per_class": per_class, "limit": limit}
        for name, value in {**numbers, "num_workers": num_workers}.items():
            minimum = 0 if name == "num_workers" else 1
            if value is not None and value < minimum:
                raise InputError(f"{name} must be at least {minimum}, not {value}")
        check_choice("on_bad_image", on_bad_image, get_args(OnBadImage))
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.subset = subset
        self.per_class = per_class
        self.limit = limit
        self.classes = classes
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.files: Mapping[str, Path | ParquetRow] = {}
        self.notes: list[str] = []
        self.latents: LatentCache | None = None
        self.read_images = True

    @staticmethod
    def of(module: LightningModule) -> EvalDataModule:
        """Return the DataModule of a module's trainer.

        Raises:
            InputError: If it is not an `EvalDataModule`.
        """
        data = getattr(module.trainer, "datamodule", None)
        if not isinstance(data, EvalDataModule):
            raise InputError(f"{type(module).__name__} needs Trainer.predict(model, datamodule=an EvalDataModule)")
        return data

    @property
    @abstractmethod
    def all_classes(self) -> ClassSpace:
        """All classes of the dataset, in label order."""

    @cached_property
    def class_space(self) -> ClassSpace:
        """The classes that are offered as answers, in label order: all, or those that the file `classes` names."""
        classes = self.all_classes
        return classes if self.classes is None else classes.subset(Path(self.classes).expanduser(), self.name)

    @property
    def official_images(self) -> int | None:
        """Number of images of the official split, if there is one."""
        return None

    @property
    def expected_images(self) -> int | None:
        """Number of images these settings select from the complete dataset; None if unknown."""
        # A class may have fewer images than `per_class` asks for.
        selections = (self.subset, self.per_class, self.limit, self.classes)
        return self.official_images if all(selection is None for selection in selections) else None

    @abstractmethod
    def find_items(self) -> list[Item]:
        """Return all items of the split in a fixed order, with labels of `all_classes`; may read lists, never images.

        Raises:
            InputError: If the dataset is missing or inconsistent.
        """

    def read_bytes(self, item: Item) -> bytes:
        """Return the encoded image of an item; by default the content of its file in `files`.

        Raises:
            InputError: If it cannot be read; the message names the file.
        """
        file = self.files[item.image_id]
        try:
            return read_file(file) if isinstance(file, Path) else file.read_bytes()
        except OSError as error:
            raise InputError(f"image {file} cannot be read: {error.strerror}") from error

    def where(self, item: Item) -> str:
        """Return the location of an item's image, for messages."""
        return str(self.files.get(item.image_id, item.image_id))

    @final
    def read_image(self, item: Item) -> Tensor:
        """Read and preprocess the image of an item. `(3, s, s)`, uint8 in [0, 255].

        Raises:
            InputError: If it cannot be read or decoded; the message names the file.
        """
        return decode_image(self.read_bytes(item), self.where(item), self.image_size)

    def generation_prompts(self) -> list[str]:
        """Return the prompt to generate from for each item: that of its class, unless the dataset has captions."""
        prompts = self.class_space.prompts
        return [prompts[item.labels[0]] for item in self.items]

    def load(self, items: Sequence[Item]) -> Batch:
        """Read a batch: of each item its cached latent if there is one, else its preprocessed image."""
        images: dict[Item, Tensor] = {}
        latents: dict[Item, Tensor] = {}
        digests: dict[Item, str] = {}
        failed: dict[str, str] = {}
        for item in items if self.read_images else ():
            try:
                content = self.read_bytes(item)
                digests[item] = digest_of(content)
                if self.latents is not None and (latent := self.latents.read(digests[item])) is not None:
                    latents[item] = latent
                else:
                    images[item] = decode_image(content, self.where(item), self.image_size)
            except InputError as error:
                if self.on_bad_image == "stop":
                    raise
                failed[item.image_id] = str(error)
        loaded = [*images, *latents] if self.read_images else items
        # float32 is named because a half-precision trainer changes torch's default.
        empty = torch.empty(0, dtype=torch.float32)
        return Batch(
            image=torch.stack([*images.values()]) if images else empty.byte(),
            # As integers: a half-precision trainer rounds all floats of a batch.
            latent=(torch.stack([*latents.values()]) if latents else empty).view(torch.int32),
            image_id=[item.image_id for item in loaded],
            labels=[item.labels for item in loaded],
            digests=[digests.get(item) for item in loaded],
            failed=failed,
        )

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: the trainer holds a network with hooks, which cannot be pickled.
        return {**vars(self), "trainer": None}

    def setup(self, stage: str) -> None:
        self.finished: frozenset[str] = frozenset()
        try:
            items = self.find_items()
        except OSError as error:
            raise InputError(f"{self.name}: {error}") from error
        ids = [item.image_id for item in items]
        if undecodable := [image_id for image_id in ids if image_id.encode(errors="replace").decode() != image_id]:
            raise InputError(f"{self.name}: the file name {undecodable[0]!a} is not UTF-8; rename it")
        if repeated := [image_id for image_id, count in Counter(ids).items() if count > 1]:
            raise InputError(f"{self.name} lists {repeated[0]} more than once ({counted(len(repeated), 'such image')})")
        if self.subset is not None:
            items = read_subset(items, Path(self.subset).expanduser(), self.name)
        if (offered := self.class_space.labels) is not None:
            index = {full: i for i, full in enumerate(offered)}
            pairs = ((item.image_id, tuple(index[full] for full in item.labels if full in index)) for item in items)
            items = [Item(image_id, labels) for image_id, labels in pairs if labels]
        if self.per_class is not None:
            items = per_class(items, self.per_class, self.seed)
        of_classes = f" of the classes in {self.classes}" if self.classes else ""
        if not items:
            raise InputError(f"{self.name} has no image{of_classes} to evaluate")
        if self.limit is not None:
            if self.limit > len(items):
                raise InputError(f"limit asks for {self.limit} images, but there are {len(items)}{of_classes}")
            items = stratified(items, self.limit, self.seed)
        self.items = items
        for note in self.notes:
            rank_zero_only(_log.warning)(f"warning: {note}")
        if (expected := self.expected_images) is not None and len(items) < expected:
            available = f"{len(items):,} of {expected:,} images"
            rank_zero_only(_log.warning)(f"warning: {self.name} has only {available}; a partial run")

    def in_file_order(self, items: Sequence[Item]) -> list[Item]:
        """Return items in the order of parquet files, whose neighbours are read together; others keep their order."""
        return sorted(items, key=lambda item: getattr(self.files.get(item.image_id), "position", ()))

    def predict_dataloader(self) -> RankLoader:
        """Return the batches of this process's part of the unfinished items."""
        items = self.in_file_order([item for item in self.items if item.image_id not in self.finished])
        trainer = self.trainer
        ranks = (0, 1, 1) if trainer is None else (trainer.global_rank, trainer.world_size, trainer.num_devices)
        return RankLoader(items, self.load, self.batch_size, self.num_workers, *ranks)
