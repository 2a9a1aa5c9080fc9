"""From items to batches: one process's share of what is left to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from bigain.data.samples import Batch, Samples, collate

if TYPE_CHECKING:
    from bigain.data.base import EvalDataModule


class Share:
    """The unfinished items of one process in batches, at least one: an empty share is one empty batch.

    Lightning takes any iterable. It would give a DataLoader of its own another sampler, which deals out finished items,
    too; and with nothing to load it passes over the whole loop, whose end the other processes wait for.
    """

    def __init__(self, data: EvalDataModule, rank: int = 0, world_size: int = 1, processes_here: int = 1) -> None:
        """Deal out what is left, to all processes alike.

        Args:
            data: A DataModule after `setup`, with the same items finished in all processes.
            rank: Number of this process.
            world_size: Number of processes.
            processes_here: How many of them share this machine's cores.
        """
        samples = Samples(data)
        left = range(len(samples))
        # In one piece: neighbours on disk are read together.
        mine = left[len(left) * rank // world_size : len(left) * (rank + 1) // world_size]
        batches = [mine[start : start + data.batch_size] for start in range(0, len(mine), data.batch_size)]
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=[list(batch) for batch in batches] or [[]],
            # More processes than cores only wait for each other.
            num_workers=min(data.num_workers, max(1, _cores() // processes_here)),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # Otherwise the seed of the workers is drawn from the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
