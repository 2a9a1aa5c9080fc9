"""What turns images into features for the distances between sets of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to features, in float32 and evaluation mode whatever the trainer's precision.

    Nothing heavy happens before `load`. Weights live on the device `to` put them on, after `load`.

    Attributes:
        protocol: Name of everything that decides the features: resize, scaling, network, layer. Distances carry it,
            and references made under another name are refused.
        dimension: Length `d` of a feature.
        class_names: What `classes_of` tells apart, in order; empty for an extractor that is no classifier.
    """

    protocol: str
    dimension: int
    class_names: Sequence[str] = ()

    @abstractmethod
    def load(self) -> None:
        """Build the network and read its weights, once; later calls do nothing.

        Raises:
            InputError: If the weights are not there or are others.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features of images. Loads if need be.

        Args:
            images: RGB in [0, 255]. `(b, 3, h, w)`, uint8.

        Returns:
            `(b, d)`, float32.
        """

    @abstractmethod
    def digest(self) -> str:
        """Sha256 of the weights, in hex. Loads if need be."""

    def classes_of(self, features: Tensor) -> Tensor:
        """Most likely class of each feature, an index into `class_names`.

        Args:
            features: As `forward` gives them. `(b, d)`.

        Returns:
            `(b,)`, int64.
        """
        raise NotImplementedError(f"{type(self).__name__} is no classifier")

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in evaluation mode: batch statistics would make features depend on the batch."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `module.half()` and `.to(bfloat16)` arrive here, also from a module that holds this one: only the move to
        # another device is followed, since weights that were rounded once stay so.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
