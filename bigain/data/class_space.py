"""The classes of a dataset: names, prompts, ImageNet indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from bigain.data.folders import read_lines
from bigain.errors import InputError

T = TypeVar("T")


def prompts(template: str, names: Sequence[str]) -> list[str]:
    """Return the template with `{}` replaced by each name; raise an InputError if it has none."""
    if "{}" not in template:
        raise InputError(f"prompt needs a {{}} where the class name goes, not {template!r}")
    return [template.replace("{}", name) for name in names]


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
        ids: Names that are never repeated, such as WordNet ids and folders; empty if `names` are not.
        labels: If these are only some classes of a dataset, the label of each among all of them.
        total: If these are only some classes of a dataset, the number of all of them.
    """

    names: Sequence[str]
    prompts: Sequence[str]
    indices: Sequence[int] | None
    factors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    multilabel: bool = False
    ids: Sequence[str] = ()
    labels: Sequence[int] | None = None
    total: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def model_labels(self) -> Sequence[int]:
        """Label of each class in a class-conditional model: of ImageNet, or of exactly this dataset."""
        return next(labels for labels in (self.indices, self.labels, range(len(self))) if labels is not None)

    def subset(self, file: Path, dataset: str) -> ClassSpace:
        """Return the classes that a file names, one per line by name or id, in the order of their labels.

        A name that several classes have stands for all of them.

        Raises:
            InputError: If the file cannot be read, is empty, or has a line that is no class of `dataset`.
        """
        labels_of: dict[str, list[int]] = {}
        for label, name in enumerate(self.names):
            labels_of.setdefault(name, []).append(label)
        labels_of |= {name: [label] for label, name in enumerate(self.ids)}
        labels: set[int] = set()
        for number, line in read_lines(file, "expected one class per line"):
            if line not in labels_of:
                known = f"its classes have names such as {self.names[0]}"
                raise InputError(f"{file}, line {number}: {dataset} has no class {line!r}; {known}")
            labels.update(labels_of[line])
        if not labels:
            raise InputError(f"{file} names no class; expected one class per line, such as {self.names[0]}")
        chosen = sorted(labels)

        def select(values: Sequence[T]) -> list[T]:
            return [values[label] for label in chosen]

        return replace(
            self,
            names=select(self.names),
            prompts=select(self.prompts),
            indices=None if self.indices is None else select(self.indices),
            factors={name: select(groups) for name, groups in self.factors.items()},
            ids=select(self.ids) if self.ids else (),
            labels=chosen,
            total=len(self),
        )
