"""What there is to tell apart: class names, prompts, indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a dataset, in label order.

    Attributes:
        names: Class names.
        prompts: Text condition of each class.
        indices: Index of each class in the label space of a class-conditional model.
        factors: Coarser labels to report accuracy on too: factor name -> group of each class.
    """

    names: Sequence[str]
    prompts: Sequence[str]
    indices: Sequence[int]
    factors: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)
