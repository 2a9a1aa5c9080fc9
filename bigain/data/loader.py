"""The predict loader: the unfinished items of one process in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bigain.data.selection import Item


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


class RankLoader:
    """Batches of the items of one process; at least one batch, which is empty if the process has no items.

    Lightning accepts any iterable. It would replace the sampler of a DataLoader by one that also deals out finished
    items; and a process without batches would skip the prediction loop, at whose end the others wait for it.
    """

    def __init__(
        self,
        items: Sequence[Item],
        load: Callable[[Sequence[Item]], Batch],
        batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        local_world_size: int = 1,
    ) -> None:
        """Split unfinished items, the same in all processes, between `world_size` processes.

        `load` reads a batch, in `num_workers` processes or fewer on a machine with fewer cores, which
        `local_world_size` processes share.
        """
        # Contiguous: neighbours on disk are read together.
        indices = range(len(items) * rank // world_size, len(items) * (rank + 1) // world_size)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._loader: DataLoader[Any] = DataLoader(
            items,  # type: ignore[arg-type]
            batch_sampler=[list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)] or [[]],
            num_workers=min(num_workers, max(1, cores // local_world_size)),
            collate_fn=load,
            pin_memory=torch.cuda.is_available(),
            # Otherwise the workers' seed is drawn from the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)
