"""Features of the embedded dataset: the second to last layer of a small classifier of ShapeTextures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor, exact_float32, load_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGE_SIZE = 32
DIMENSION = 64


class ShapeNetwork(nn.Module):
    """Strided convolutions, average pooling and a linear head; group norm, so that features do not depend on the batch.

    `scripts/train_shape_features.py` trains it.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        """Build the network with random weights.

        `widths` are the channels of each block, divisible by 8; the last is the length of a feature. Every block but
        the first and the last halves the grid.
        """
        super().__init__()
        blocks = []
        for i, (in_channels, out_channels) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            stride = 2 if 0 < i < len(widths) - 1 else 1
            convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.GroupNorm(8, out_channels), nn.SiLU()))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Compute features of images in [0, 255], any dtype. `(b, 3, 32, 32)` -> `(b, d)`."""
        return self.blocks(images.float() / 127.5 - 1).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Compute class logits of images in [0, 255], any dtype. `(b, 3, 32, 32)` -> `(b, k)`."""
        return self.head(self.features(images))


class ShapeFeatures(FeatureExtractor):
    """Features for distances between sets of ShapeTextures images, and the classifier they come from.

    `bigain/assets/README.md` describes its training and what the distance reacts to. It means nothing on other images,
    and its values do not compare with those of other protocols. `class_names` are known after `load`.
    """

    protocol = "shapes-features"
    dimension = DIMENSION

    def read(self) -> tuple[nn.Module, str]:
        folder = Path(str(resources.files("bigain"))) / "assets" / "shapes_features"
        network, self.class_names, digest = read_network(folder)
        return network, digest

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images)

    def check(self, images: Tensor) -> None:
        super().check(images)
        height, width = images.shape[-2:]
        if not height == width == IMAGE_SIZE:
            size = f"images of {IMAGE_SIZE} x {IMAGE_SIZE} px, not of {width} x {height} px"
            raise InputError(f"{self.protocol} knows only ShapeTextures, {size}; choose another extractor")

    def classes_of(self, features: Tensor) -> Tensor:
        self.load()
        with exact_float32(features):
            return self.network.head(features).argmax(dim=1)


def read_network(folder: Path) -> tuple[ShapeNetwork, tuple[str, ...], str]:
    """Return the network that `scripts/train_shape_features.py` wrote, frozen, its class names and its sha256 in hex.

    Raises:
        InputError: If the weights are missing or damaged.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with torch.device("meta"):
        network = ShapeNetwork(config["widths"], len(config["class_names"]))
    digest = load_weights(network, folder / WEIGHTS, None, "reinstall bigain")
    return network.eval().requires_grad_(False), tuple(config["class_names"]), digest
