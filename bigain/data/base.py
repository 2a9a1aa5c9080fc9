"""The evaluation DataModule: items with stable ids, a choice of them, and one predict loader."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.data.class_space import ClassSpace
from bigain.data.latent_cache import LatentCache
from bigain.data.loader import RankLoader, Sample, Samples
from bigain.data.preprocessing import decode_image
from bigain.data.selection import Item, only, per_class, stratified
from bigain.errors import InputError

OnBadImage = Literal["stop", "skip"]

_log = logging.getLogger(__name__)


class EvalDataModule(LightningDataModule, ABC):
    """A dataset to evaluate on. Subclasses say what the items are and where the bytes of one come from.

    Attributes:
        items: The chosen items in evaluation order, after `setup`.
        image_size: Side of the preprocessed images in px.
        finished: Ids of images that an interrupted run has done already; the loader passes them over unread.
        latents: Cache of encoded images; None reads and encodes all.
        read_images: Whether the loader reads images; generation needs the items alone.
    """

    name: str
    items: list[Item]

    def __init__(
        self,
        image_size: int,
        batch_size: int,
        num_workers: int,
        subset: str | None = None,
        per_class: int | None = None,
        limit: int | None = None,
        on_bad_image: OnBadImage = "stop",
        seed: int = 0,
    ) -> None:
        """Remember the settings; nothing is read here.

        Args:
            image_size: Side of the preprocessed images in px.
            batch_size: Images per batch; results do not depend on it.
            num_workers: Processes that decode images.
            subset: File with one image id per line; only these are evaluated.
            per_class: Evaluate at most this many images of each class, those with the smallest hash of (seed, id).
            limit: Evaluate this many images, spread evenly over the classes, chosen by `seed`.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Of `per_class` and `limit`.

        Raises:
            InputError: If a number is out of range.
        """
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"batch_size must be at least 1 and num_workers 0, got {batch_size} and {num_workers}")
        for name, value in (("limit", limit), ("per_class", per_class)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}; leave it out to evaluate all images")
        if image_size < 1:
            raise InputError(f"image_size must be at least 1 px, not {image_size}")
        if on_bad_image not in ("stop", "skip"):
            raise InputError(f"on_bad_image must be stop or skip, not {on_bad_image!r}")
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.subset = subset
        self.per_class = per_class
        self.limit = limit
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.finished: frozenset[str] = frozenset()
        self.latents: LatentCache | None = None
        self.read_images = True

    @staticmethod
    def of(module: LightningModule) -> EvalDataModule:
        """What a module's trainer was given.

        Raises:
            InputError: If that is no `EvalDataModule`.
        """
        data = getattr(module.trainer, "datamodule", None)
        if not isinstance(data, EvalDataModule):
            name = type(module).__name__
            raise InputError(f"{name} needs Trainer.predict(model, datamodule=an EvalDataModule)")
        return data

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
    def read_bytes(self, item: Item) -> bytes:
        """The encoded image file of an item.

        Raises:
            InputError: If it cannot be read; the message names the file.
        """

    def read_image(self, item: Item) -> Tensor:
        """One preprocessed image. `(3, s, s)`, uint8 in [0, 255].

        Raises:
            InputError: If it cannot be read or decoded; the message names the file.
        """
        return decode_image(self.read_bytes(item), self.where(item), self.image_size)

    def where(self, item: Item) -> str:
        """Where the image of an item is, for messages."""
        return item.image_id

    def position(self, item: Item) -> tuple[int, ...]:
        """Where an item lies on disk among the others: the loader reads in this order, and else in that of `items`."""
        return ()

    def id_of(self, line: str) -> str:
        """The image id that a line of a subset file means."""
        return line

    def generation_prompts(self) -> list[str]:
        """What to generate for each item: the prompt of its class, unless the dataset has captions."""
        prompts = self.class_space.prompts
        return [prompts[item.labels[0]] for item in self.items]

    def sample(self, item: Item) -> Sample:
        """What the loader gives for an item: its latent if that is cached, else its preprocessed image."""
        if not self.read_images:
            return Sample(item)
        if self.latents is None:
            return Sample(item, image=self.read_image(item))
        content = self.read_bytes(item)
        key = self.latents.key(content)
        latent = self.latents.read(key)
        if latent is not None:
            return Sample(item, latent=latent)
        return Sample(item, image=decode_image(content, self.where(item), self.image_size), key=key)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes need the items; the trainer holds a hooked network that no process can be sent.
        return {**vars(self), "trainer": None}

    def setup(self, stage: str) -> None:
        try:
            items = self.find_items()
        except OSError as error:
            raise InputError(f"{self.name}: {error}") from error
        unnameable = [item.image_id for item in items if not _is_text(item.image_id)]
        if unnameable:
            raise InputError(f"{self.name}: the file name {unnameable[0]!a} is not UTF-8; rename it")
        twice = [image_id for image_id, count in Counter(item.image_id for item in items).items() if count > 1]
        if twice:
            raise InputError(f"{self.name} lists {twice[0]} more than once ({len(twice)} such images)")
        if self.subset is not None:
            items = only(items, Path(self.subset).expanduser(), self.name, self.id_of)
        if self.per_class is not None:
            items = per_class(items, self.per_class, self.seed)
        if self.limit is not None:
            items = stratified(items, self.limit, self.seed)
        if not items:
            raise InputError(f"no image of {self.name} is left to evaluate")
        self.items = items
        if self.expected_images is not None and len(items) < self.expected_images:
            _warn(f"warning: {self.name} has {len(items):,} images here of {self.expected_images:,}; a partial run")

    @property
    def expected_images(self) -> int | None:
        """How many images these settings give on a complete dataset; None where that is up to the user."""
        # A class may have fewer images than `per_class` asks for.
        chosen = self.subset is not None or self.per_class is not None or self.limit is not None
        return None if chosen else self.official_images

    def predict_dataloader(self) -> RankLoader:
        """Batches of this process's part of the unfinished items."""
        items = sorted((item for item in self.items if item.image_id not in self.finished), key=self.position)
        samples = Samples(items, self.sample, self.on_bad_image == "skip")
        trainer = self.trainer
        if trainer is None:
            return RankLoader(samples, self.batch_size, self.num_workers)
        ranks = trainer.global_rank, trainer.world_size, trainer.num_devices
        return RankLoader(samples, self.batch_size, self.num_workers, *ranks)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
