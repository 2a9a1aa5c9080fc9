"""Items as they are read, and batches of them: what worker processes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigain.data.selection import Item
from bigain.errors import InputError

if TYPE_CHECKING:
    from bigain.data.base import EvalDataModule


@dataclass(frozen=True)
class Sample:
    """One item as the loader reads it: an image to encode, a cached latent, or the reason why there is neither.

    Where images are not asked for, the item alone.

    Attributes:
        item: The item.
        image: `(3, s, s)`, uint8 in [0, 255].
        latent: `(c, h, w)`, float32.
        key: Where the latent of `image` belongs in the cache.
        failure: Why the image could not be read.
    """

    item: Item
    image: Tensor | None = None
    latent: Tensor | None = None
    key: str | None = None
    failure: str | None = None


class Batch(TypedDict):
    """What the predict loader yields: u images to encode, then v cached latents; b = u + v, any may be 0.

    Where images are not asked for, u = v = 0, and there are b ids all the same.

    Attributes:
        image: `(u, 3, s, s)`, uint8 in [0, 255].
        latent: The bits of float32 latents. `(v, c, h, w)`, int32.
        image_id: b ids, of the images first.
        labels: Labels of each of the b.
        cache_keys: u keys, None without a cache.
        failed: Id and reason of every image that could not be read; a module adds those it could not evaluate.
    """

    image: Tensor
    latent: Tensor
    image_id: list[str]
    labels: list[tuple[int, ...]]
    cache_keys: list[str | None]
    failed: dict[str, str]


class Samples(Dataset[Sample]):
    """The unfinished items of a DataModule in the order of their files, read one by one."""

    def __init__(self, data: EvalDataModule) -> None:
        self.data = data
        self.items = sorted((item for item in data.items if item.image_id not in data.finished), key=data.position)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        try:
            return self.data.sample(item)
        except InputError as error:
            if self.data.on_bad_image == "stop":
                raise
            return Sample(item, failure=str(error))


def collate(samples: Sequence[Sample]) -> Batch:
    """Gather samples into a batch."""
    images = [sample for sample in samples if sample.image is not None]
    cached = [sample for sample in samples if sample.latent is not None]
    bare = [sample for sample in samples if sample.image is None and sample.latent is None and sample.failure is None]
    read = [*images, *cached, *bare]
    return Batch(
        image=_stack([sample.image for sample in images if sample.image is not None]).byte(),
        # As integers: a half-precision trainer rounds whatever floats a batch holds.
        latent=_stack([sample.latent for sample in cached if sample.latent is not None]).view(torch.int32),
        image_id=[sample.item.image_id for sample in read],
        labels=[sample.item.labels for sample in read],
        cache_keys=[sample.key for sample in images],
        failed={sample.item.image_id: sample.failure for sample in samples if sample.failure is not None},
    )


def _stack(tensors: list[Tensor]) -> Tensor:
    # float32 is named because a half-precision trainer changes torch's default.
    return torch.stack(tensors) if tensors else torch.empty(0, dtype=torch.float32)
