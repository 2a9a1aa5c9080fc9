"""Training images of ShapeTextures, drawn batch by batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bigain.data.shapes import render_shapes


def shape_batches(
    batch_size: int, batches: int, first_image: int = 0, order: Iterable[int] | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Images `(b, 3, s, s)` in [0, 1], and their classes `(b,)`: drawing is vectorised, and none is ever seen twice."""

    def draw(number: int) -> tuple[Tensor, Tensor]:
        start = first_image + number * batch_size
        return render_shapes(torch.arange(start, start + batch_size), "train")

    return DataLoader(range(batches), batch_size=None, sampler=order, collate_fn=draw)
