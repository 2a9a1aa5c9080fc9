"""Features of the embedded dataset: the last layer but one of a small classifier of ShapeTextures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.tokens.precision import without_autocast

CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGE_SIZE = 32
DIMENSION = 64
_FIX = "reinstall bigain, or write it anew with scripts/train_shape_features.py"


class ShapeNetwork(nn.Module):
    """Strided convolutions, average pooling and a linear head. Group norm, so that no image sees its batch.

    `scripts/train_shape_features.py` trains it.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        """Build the network with random weights.

        Args:
            widths: Channels of each block, divisible by 8; every block but the first and the last halves the grid.
                The last one is the length of a feature.
            classes: Outputs of the head.
        """
        super().__init__()
        blocks = []
        for i, (narrow, wide) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            stride = 2 if 0 < i < len(widths) - 1 else 1
            convolution = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.GroupNorm(8, wide), nn.SiLU()))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Features of images in [0, 255], any dtype. `(b, 3, 32, 32)` -> `(b, d)`."""
        return self.blocks(images.float() / 127.5 - 1).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits of images in [0, 255], any dtype. `(b, 3, 32, 32)` -> `(b, k)`."""
        return self.head(self.features(images))


class ShapeFeatures(FeatureExtractor):
    """The features of a distance between sets of ShapeTextures images, and the classifier they come from.

    `bigain/assets/README.md` tells how it was trained and what the distance reacts to. It means nothing on other
    images, and its values compare with no other protocol's.

    Attributes:
        protocol: See `FeatureExtractor`.
        dimension: See `FeatureExtractor`.
        class_names: See `FeatureExtractor`; also what the logits of `classify` stand for. After `load`.
    """

    protocol = "shapes-features"
    dimension = DIMENSION

    def __init__(self) -> None:
        super().__init__()
        self.network: ShapeNetwork | None = None
        self.class_names = ()
        self._digest = ""

    def load(self) -> None:
        if self.network is None:
            folder = Path(str(resources.files("bigain"))) / "assets" / "shapes_features"
            self.network, self.class_names, self._digest = read_network(folder)

    def forward(self, images: Tensor) -> Tensor:
        network = self._network(images)
        with _exactly(images):
            return network.features(images)

    def classify(self, images: Tensor) -> Tensor:
        """Class logits of images. Loads if need be.

        Args:
            images: RGB in [0, 255]. `(b, 3, 32, 32)`, uint8.

        Returns:
            `(b, 16)`, float32; the classes of ShapeTextures in order.

        Raises:
            InputError: If the images are of another size or dtype.
        """
        network = self._network(images)
        with _exactly(images):
            logits: Tensor = network(images)
        return logits

    def classes_of(self, features: Tensor) -> Tensor:
        self.load()
        assert self.network is not None
        with _exactly(features):
            classes: Tensor = self.network.head(features).argmax(dim=1)
        return classes

    def digest(self) -> str:
        self.load()
        return self._digest

    def _network(self, images: Tensor) -> ShapeNetwork:
        expected = (3, IMAGE_SIZE, IMAGE_SIZE)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise InputError(
                f"{self.protocol} needs uint8 images of shape (b, 3, 32, 32), not {images.dtype} of shape "
                f"{tuple(images.shape)}; it knows ShapeTextures only, for other images choose another extractor"
            )
        if self.network is None:
            self.load()
            self.to(images.device)
        assert self.network is not None
        return self.network


@contextmanager
def _exactly(images: Tensor) -> Iterator[None]:
    """Float32 in earnest: without autocast and TF32, and with convolutions that repeat."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.no_grad(), without_autocast(images), flags:
        yield


def read_network(folder: Path) -> tuple[ShapeNetwork, tuple[str, ...], str]:
    """Read a trained network, frozen and in float32.

    Args:
        folder: Holds the configuration and the weights, as `scripts/train_shape_features.py` writes them.

    Returns:
        The network, its class names, and the sha256 of its weights in hex.

    Raises:
        InputError: If a file is missing or damaged, or the weights are not those that the configuration names.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != config["sha256"]:
            raise InputError(f"{folder / WEIGHTS} has the sha256 {digest}, expected {config['sha256']}; {_FIX}")
        # Without memory, so that no random weights are drawn: loading must not move the global random state.
        with torch.device("meta"):
            network = ShapeNetwork(config["widths"], len(config["class_names"]))
        # Stored in half precision. Assigned, since a trainer may have changed the default dtype of new parameters.
        network.load_state_dict({name: tensor.float() for name, tensor in load(data).items()}, assign=True)
        return network.eval().requires_grad_(False), tuple(config["class_names"]), digest
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise InputError(f"cannot read the feature extractor {folder}: {error}; {_FIX}") from error
