"""Training images of ShapeTextures, drawn batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigain.data.shapes import render_shapes


class ShapeBatches(Dataset[tuple[Tensor, Tensor]]):
    """One item is a whole batch: drawing is vectorised, and no image is ever seen twice.

    Images `(b, 3, s, s)` in [0, 1], and their classes `(b,)`.
    """

    def __init__(self, batch_size: int, batches: int, first_image: int = 0) -> None:
        self.batch_size = batch_size
        self.batches = batches
        self.first_image = first_image

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        start = self.first_image + item * self.batch_size
        return render_shapes(torch.arange(start, start + self.batch_size), "train")
