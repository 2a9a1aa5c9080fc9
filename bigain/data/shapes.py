"""ShapeTextures, the embedded dataset: 4 shapes x 4 fills, drawn in code."""

from __future__ import annotations

import io
from typing import Any, get_args

import torch
from torchvision.transforms.v2.functional import to_pil_image

from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace, prompts
from bigain.data.selection import Item
from bigain.data.shape_renderer import CLASS_NAMES, IMAGE_SIZE, Split, render_shapes
from bigain.errors import InputError, check_choice

# All items are listed in memory.
_MOST_IMAGES = 10_000_000


class ShapeTextures(EvalDataModule):
    """32x32 RGB images whose shape is low-frequency and whose fill is high-frequency evidence.

    Images are functions of (split, index), so there is nothing to download. Accuracy is reported for class, shape and
    fill. The embedded models were trained on `train`; settings are selected on `val`, results are for `test`.
    """

    name = "ShapeTextures"

    def __init__(
        self,
        images: int = 128,
        split: Split = "test",
        prompt: str = "a photo of a {}",
        batch_size: int = 16,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        """Store the settings; nothing is drawn yet.

        Args:
            images: Number of images, cycling through the classes.
            split: `train`, `val` or `test`: disjoint random streams.
            prompt: Template for a text-conditional model; `{}` is the class name.
            batch_size: Images per batch; results do not depend on it.
            num_workers: Processes that draw images.
            **kwargs: Arguments of every dataset; `seed` selects images, but does not change them.
        """
        super().__init__(
            image_size=IMAGE_SIZE, on_bad_image="stop", batch_size=batch_size, num_workers=num_workers, **kwargs
        )
        check_choice("split", split, get_args(Split))
        if not 1 <= images <= _MOST_IMAGES:
            raise InputError(f"images must be 1 to {_MOST_IMAGES:,}, not {images}")
        self.images = images
        self.split: Split = split
        self.prompt = prompt

    @property
    def all_classes(self) -> ClassSpace:
        count = len(CLASS_NAMES)
        return ClassSpace(
            names=CLASS_NAMES,
            prompts=prompts(self.prompt, CLASS_NAMES),
            indices=None,
            factors={"shape": [c // 4 for c in range(count)], "fill": [c % 4 for c in range(count)]},
        )

    def find_items(self) -> list[Item]:
        return [Item(f"{self.split}/{i:06d}", (i % len(CLASS_NAMES),)) for i in range(self.images)]

    def read_bytes(self, item: Item) -> bytes:
        """Return the image of an item as a PNG file."""
        index = torch.tensor([int(item.image_id.rpartition("/")[2])])
        image, _ = render_shapes(index, self.split)
        file = io.BytesIO()
        to_pil_image((image[0] * 255).round().to(torch.uint8)).save(file, "PNG")
        return file.getvalue()
