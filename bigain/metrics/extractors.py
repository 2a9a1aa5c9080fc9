"""Networks that map images to features for the distances between sets of images, and how they are loaded."""

from __future__ import annotations

import hashlib
import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bigain.errors import InputError
from bigain.tokens.precision import without_autocast


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to features, in float32 and evaluation mode whatever the trainer's precision.

    Constructing it reads nothing. Weights are on the device that `to` moved them to after `load`, else on that of the
    first images.

    Attributes:
        protocol: Name of everything that decides the features: resize, scaling, network, layer. Distances carry it,
            and references made under a different name are refused.
        dimension: Length `d` of a feature.
        class_names: Classes that `classes_of` distinguishes, in order; empty for an extractor that is no classifier.
        network: The network; None before `load`.
    """

    protocol: str
    dimension: int
    class_names: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = None
        self._digest = ""

    @abstractmethod
    def read(self) -> tuple[nn.Module, str]:
        """Return the network with its weights in float32, and their sha256 in hex.

        Raises:
            InputError: If the weights are missing, damaged or different ones.
        """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the features of images `(b, 3, h, w)` by the loaded network. `(b, d)`, float32."""

    def check(self, images: Tensor) -> None:
        """Raise a ValueError or an InputError if the network cannot process these images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (b, 3, h, w), got {images.dtype} {tuple(images.shape)}")

    def load(self) -> None:
        """Read the weights, once: see `read`. Later calls do nothing."""
        if self.network is None:
            network, self._digest = self.read()
            self.network = network.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of RGB images in [0, 255]; loads the network first if necessary.

        `(b, 3, h, w)`, uint8 -> `(b, d)`, float32.
        """
        self.check(images)
        if self.network is None:
            self.load()
            self.to(images.device)
        with exact_float32(images):
            return self.features(images)

    def digest(self) -> str:
        """Return the sha256 of the weights, in hex; loads the network first if necessary."""
        self.load()
        return self._digest

    def classes_of(self, features: Tensor) -> Tensor:
        """Return the most likely class of each feature, an index into `class_names`. `(b, d)` -> `(b,)`, int64."""
        raise NotImplementedError(f"{type(self).__name__} is no classifier")

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: batch statistics would make features depend on the batch."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `module.half()` and `.to(bfloat16)` call this, also on a module that contains this one. Only the move to
        # another device is followed: weights that were rounded once stay rounded.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]


@contextmanager
def exact_float32(images: Tensor) -> Iterator[None]:
    """Compute without gradients, autocast and TF32, and with deterministic convolutions."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.no_grad(), without_autocast(images), flags:
        yield


def load_weights(network: nn.Module, path: Path, sha256: str | None, fix: str, prefix: str = "") -> str:
    """Fill a network that was built on the meta device from a file, in float32.

    Args:
        network: Its parameters are replaced, so that no random numbers are drawn and a trainer's default dtype has no
            effect.
        path: `.safetensors`, or a pickled state dict, which is read without running code.
        sha256: Of the file, in hex; None accepts any.
        fix: What to do about a bad file.
        prefix: `fc.` loads Inception's classifier alone; empty loads everything else.

    Returns:
        The sha256 of the file, in hex.

    Raises:
        InputError: If the file is missing or damaged, or holds different weights.
    """
    try:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256:
            expected = f"expected {sha256[:8]}...: it is damaged or holds other weights"
            raise InputError(f"{path} has sha256 {digest[:8]}..., {expected}; {fix}")
        is_safetensors = path.suffix == ".safetensors"
        state = load(data) if is_safetensors else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        selected = {name: tensor.float() for name, tensor in state.items() if name.startswith("fc.") == bool(prefix)}
        network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in selected.items()}, assign=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not hold the weights of {type(network).__name__} ({reason}); {fix}") from error
    return digest
