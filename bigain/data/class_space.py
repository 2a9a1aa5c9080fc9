"""The classes of a dataset: names, prompts, ImageNet indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bigain.errors import InputError


def prompts(template: str, names: Sequence[str]) -> list[str]:
    """Return the template with `{}` replaced by each name."""
    return [template.replace("{}", name) for name in names]


def check_template(template: str) -> str:
    """Return a prompt template; raise an InputError if it has no `{}` for the name."""
    if "{}" not in template:
        raise InputError(f"prompt needs a {{}} where the class name goes, not {template!r}")
    return template


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a dataset, in label order.

    Attributes:
        names: Class names.
        prompts: Text condition of each class.
        indices: ImageNet index of each class, which the released DiT models are conditioned on. None if there is
            none: then only a model trained on exactly these classes can be conditioned on their labels.
        factors: Coarser labels whose accuracy is reported too: factor name -> group of each class.
        multilabel: Whether an image may have several labels, or none.
    """

    names: Sequence[str]
    prompts: Sequence[str]
    indices: Sequence[int] | None
    factors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    multilabel: bool = False

    def __len__(self) -> int:
        return len(self.names)
