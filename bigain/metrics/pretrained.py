"""Networks that transformers saved to a local folder, and extractors of features made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigain.backbones.loading import UNLOADABLE, find_weights
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor


def missing_from(folder: Path, files: Sequence[str], expected: str) -> str | None:
    """Return what a folder lacks of these files and of weights, and what was `expected`; None if nothing."""
    for name in files:
        if not (folder / name).is_file():
            return f"{folder / name} does not exist; expected {expected}"
    try:
        find_weights(folder, "text_encoder")
    except InputError as error:
        return str(error)
    return None


def load_pretrained(kind: Any, folder: Path, title: str) -> tuple[Any, str]:
    """Load a model of a class of transformers from a folder, in float32; nothing is downloaded.

    Returns:
        The model, and the sha256 of its weights in hex: of the file, or of all shards one after the other.

    Raises:
        InputError: If it is missing, incomplete, damaged or not safetensors; `title` names the model.
    """
    variant, files = find_weights(folder, "text_encoder")
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            # The configuration could name a kernel on the hub, which is code.
            attn_implementation="sdpa",
        )
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
    except UNLOADABLE as error:
        raise InputError(f"cannot load the {title} {folder}: {' '.join(str(error).split())}") from error
    # Transformers fills missing weights with random numbers.
    if absent := sorted(info["missing_keys"]):
        raise InputError(f"{folder} lacks {len(absent)} weights, such as {absent[0]}")
    return model.float().eval(), digest.hexdigest()


class PretrainedExtractor(FeatureExtractor):
    """Features of a model of transformers in a local folder.

    Images are resized to a square, bicubic with antialias and without rounding to 8 bits, clipped to [0, 1] and
    standardised by channel.

    Attributes:
        title: Name of the model in messages.
        kind: Its class in transformers.
        published: Its name on the hub.
        width: Name of the setting that holds the length of a feature.
        mean: Of the channels.
        deviation: Standard deviation of the channels.
    """

    title: ClassVar[str]
    kind: ClassVar[Any]
    published: ClassVar[str]
    width: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    deviation: ClassVar[tuple[float, float, float]]

    def __init__(self, weights: str | None = None) -> None:
        """Set the extractor up.

        Args:
            weights: Folder of the model as transformers saves it, with safetensors. Nothing is downloaded.
        """
        super().__init__()
        self.weights = weights

    def unavailable(self) -> str | None:
        """Return why the network cannot be loaded, and what to fetch; None if its files are there."""
        fetch = f"get one with `hf download {self.published} --local-dir FOLDER`"
        if self.weights is None:
            return f"{self.protocol} needs the folder of a {self.title} as `weights`; {fetch}"
        reason = missing_from(Path(self.weights).expanduser(), ("config.json",), f"a {self.title}")
        return reason and f"{reason}; {fetch}"

    def read(self) -> tuple[nn.Module, str]:
        if reason := self.unavailable():
            raise InputError(reason)
        network, digest = load_pretrained(self.kind, Path(str(self.weights)).expanduser(), self.title)
        self.dimension = getattr(network.config, self.width)
        return network, digest

    def prepared(self, images: Tensor, side: int) -> Tensor:
        """Return the network's input for uint8 images. `(b, 3, side, side)`, float32."""
        x = images.to(torch.float32) / 255
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return (x - mean) / deviation
