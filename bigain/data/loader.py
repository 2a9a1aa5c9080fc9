"""The predict loader: the unfinished items of one process, read one by one and gathered into batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bigain.data.selection import Item
from bigain.errors import InputError


@dataclass(frozen=True)
class Sample:
    """A loaded item: with an image `(3, s, s)` to encode, a cached latent `(c, h, w)`, or the reason of a failure.

    Generation loads the item only. `digest` is a hash of the image's file.
    """

    item: Item
    image: Tensor | None = None
    latent: Tensor | None = None
    digest: str | None = None
    failure: str | None = None


class Batch(TypedDict):
    """A batch of the predict loader: u images to encode, then v cached latents; b = u + v, any may be 0.

    Without images (generation), u = v = 0 and there are still b ids.

    Attributes:
        image: `(u, 3, s, s)`, uint8 in [0, 255].
        latent: The bits of float32 latents. `(v, c, h, w)`, int32.
        image_id: b ids, of the images first.
        labels: Labels of each of the b.
        digests: Hashes of the b image files, None without images.
        failed: Id and reason of every image that could not be read; a module adds those it could not evaluate.
    """

    image: Tensor
    latent: Tensor
    image_id: list[str]
    labels: list[tuple[int, ...]]
    digests: list[str | None]
    failed: dict[str, str]


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """Items as samples, read on access.

    Attributes:
        items: The items, in loading order.
        read: Reads one item.
        skip_unreadable: Return the InputError of an item as `Sample.failure` instead of raising it.
    """

    items: Sequence[Item]
    read: Callable[[Item], Sample]
    skip_unreadable: bool

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        try:
            return self.read(item)
        except InputError as error:
            if not self.skip_unreadable:
                raise
            return Sample(item, failure=str(error))


class RankLoader:
    """Batches of one process's part of the samples; at least one batch, which is empty if the part is.

    Lightning accepts any iterable. It would replace the sampler of a DataLoader by one that also deals out finished
    items; and a process without batches would skip the prediction loop, at whose end the others wait for it.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        local_world_size: int = 1,
    ) -> None:
        """Split the samples between the processes.

        Args:
            samples: Unfinished items, the same in all processes.
            batch_size: Samples per batch.
            num_workers: Worker processes; fewer are started on a machine with fewer cores.
            rank: Index of this process.
            world_size: Number of processes.
            local_world_size: Number of processes on this machine.
        """
        # Contiguous: neighbours on disk are read together.
        part = range(len(samples) * rank // world_size, len(samples) * (rank + 1) // world_size)
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=[list(part[i : i + batch_size]) for i in range(0, len(part), batch_size)] or [[]],
            num_workers=min(num_workers, max(1, _cores() // local_world_size)),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # Otherwise the workers' seed is drawn from the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def collate(samples: Sequence[Sample]) -> Batch:
    """Gather samples into a batch."""
    loaded = [sample for sample in samples if sample.failure is None]
    loaded.sort(key=lambda sample: (sample.image is None, sample.latent is None))
    images = [sample.image for sample in loaded if sample.image is not None]
    latents = [sample.latent for sample in loaded if sample.latent is not None]
    return Batch(
        image=_stack(images).byte(),
        # As integers: a half-precision trainer rounds all floats of a batch.
        latent=_stack(latents).view(torch.int32),
        image_id=[sample.item.image_id for sample in loaded],
        labels=[sample.item.labels for sample in loaded],
        digests=[sample.digest for sample in loaded],
        failed={sample.item.image_id: sample.failure for sample in samples if sample.failure is not None},
    )


def _stack(tensors: list[Tensor]) -> Tensor:
    # float32 is named because a half-precision trainer changes torch's default.
    return torch.stack(tensors) if tensors else torch.empty(0, dtype=torch.float32)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
