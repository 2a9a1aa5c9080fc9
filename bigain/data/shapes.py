"""ShapeTextures, the embedded dataset: 4 shapes x 4 fills, drawn as a pure function of (split, index)."""

from __future__ import annotations

import io
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace, prompts
from bigain.data.selection import Item
from bigain.errors import InputError, check_choice
from bigain.tokens.randomness import mix, random_normal, random_uniform, stable_hash

SHAPES = ("disk", "square", "triangle", "ring")
FILLS = ("horizontally striped", "vertically striped", "checkered", "plain")
CLASS_NAMES = tuple(f"{fill} {shape}" for shape in SHAPES for fill in FILLS)
IMAGE_SIZE = 32

Split = Literal["train", "val", "test"]

_PARAMETERS = 16
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
        labels = range(len(CLASS_NAMES))
        factors = {"shape": [label // 4 for label in labels], "fill": [label % 4 for label in labels]}
        return ClassSpace(CLASS_NAMES, prompts(self.prompt, CLASS_NAMES), indices=None, factors=factors)

    def find_items(self) -> list[Item]:
        return [Item(f"{self.split}/{i:06d}", (i % len(CLASS_NAMES),)) for i in range(self.images)]

    def read_bytes(self, item: Item) -> bytes:
        """Return the image of an item as a PNG file."""
        index = torch.tensor([int(item.image_id.rpartition("/")[2])])
        image, _ = render_shapes(index, self.split)
        file = io.BytesIO()
        to_pil_image((image[0] * 255).round().to(torch.uint8)).save(file, "PNG")
        return file.getvalue()


def render_shapes(indices: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Draw one image per index; class `index % 16`, so any 16 consecutive indices cover all classes.

    Position, size, rotation, colours, fill period and phase, background gradient and pixel noise vary per index.
    Fill cells are about 4 px wide, so at patch 2 neighbouring tokens are mostly redundant.

    Args:
        indices: Image indices. `(b,)`, int64.
        split: Which of three disjoint random streams to draw from.

    Returns:
        Images in [0, 1], `(b, 3, 32, 32)` float32, and classes `shape * 4 + fill`, `(b,)` int64.
    """
    labels = indices % len(CLASS_NAMES)
    keys = mix(indices, stable_hash(f"ShapeTextures/{split}"))
    u = random_uniform(keys, _PARAMETERS)[..., None, None]
    parameter = iter(u.unbind(1))

    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    x = axis[None, None, :] - IMAGE_SIZE / 2
    y = axis[None, :, None] - IMAGE_SIZE / 2
    gradient_angle = next(parameter) * 2 * math.pi
    gradient = (x * torch.cos(gradient_angle) + y * torch.sin(gradient_angle)) / IMAGE_SIZE

    x = x - (next(parameter) - 0.5) * 6
    y = y - (next(parameter) - 0.5) * 6
    angle = (next(parameter) - 0.5) * math.radians(24)
    x, y = x * torch.cos(angle) - y * torch.sin(angle), x * torch.sin(angle) + y * torch.cos(angle)
    radius = 9.0 + 3.5 * next(parameter)
    # One pixel of anti-aliasing.
    mask = (0.5 - _select(_signed_distance(x, y, radius), labels // 4)).clamp(0, 1)
    fill = _fill(x, y, 7.0 + 2.0 * next(parameter), next(parameter), next(parameter), labels % 4)

    hue = next(parameter)
    background = _colour(hue, 0.35 + 0.5 * next(parameter), 0.35 + 0.55 * next(parameter))
    background = (background + 0.3 * gradient[:, None]).clamp(0, 1)
    first = _colour(hue + 1 / 3 + 0.12 * (next(parameter) - 0.5), 0.75, 0.35 + 0.6 * next(parameter))
    second = _colour(hue + 2 / 3 + 0.12 * (next(parameter) - 0.5), 0.75, 0.35 + 0.6 * next(parameter))
    foreground = torch.lerp(first, second, fill[:, None])
    image = torch.lerp(background, foreground, mask[:, None])
    noise = random_normal(mix(keys, 1), 3 * IMAGE_SIZE**2).view(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return (image + 0.02 * noise).clamp(0, 1), labels


def _signed_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance to the outline in px, negative inside, for all four shapes. `(b, 4, h, w)`."""
    r = torch.sqrt(x * x + y * y)
    disk = r - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    # An upright equilateral triangle: three half planes at distance `inner` from the centre.
    inner = 0.62 * radius
    side = math.sqrt(3) / 2
    triangle = torch.maximum(y, torch.maximum(side * x - 0.5 * y, -side * x - 0.5 * y)) - inner
    ring = (r - 0.75 * radius).abs() - 0.25 * radius
    return torch.stack((disk, square, triangle, ring), dim=1)


def _select(maps: Tensor, choice: Tensor) -> Tensor:
    """Take map `choice[i]` of row i. `(b, k, h, w)`, `(b,)` -> `(b, h, w)`."""
    return maps[torch.arange(len(choice)), choice]


def _fill(x: Tensor, y: Tensor, period: Tensor, phase_x: Tensor, phase_y: Tensor, fill: Tensor) -> Tensor:
    """Mixing weight of the second colour in [0, 1]. `(b, h, w)`."""
    wave_x = torch.sin(2 * math.pi * (x / period + phase_x))
    wave_y = torch.sin(2 * math.pi * (y / period + phase_y))
    plain = torch.full_like(wave_x, -1.0)
    # The gain makes bands with edges about one pixel wide out of the sine.
    waves = torch.stack((wave_y.expand_as(plain), wave_x.expand_as(plain), wave_x * wave_y, plain), dim=1)
    return (0.5 + 1.5 * _select(waves, fill)).clamp(0, 1)


def _colour(hue: Tensor, saturation: Tensor | float, value: Tensor) -> Tensor:
    """HSV to RGB, all in [0, 1], hue modulo 1. `(b, 1, 1)` each -> `(b, 3, 1, 1)`."""
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (offsets + 6 * hue[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    saturation = saturation[:, None] if isinstance(saturation, Tensor) else saturation
    return value[:, None] * (1 - saturation * ramp)
