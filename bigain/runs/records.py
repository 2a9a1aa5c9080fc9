"""Records of classified and generated images and of features, one JSON line each."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt


# Its dataclasses are not frozen: Lightning copies what a step returns and sets the fields of the copy.
class Record:
    """One image of a run."""

    kind: ClassVar[str]
    image_id: str

    def to_json(self) -> str:
        """Return one line; features are base64 of little-endian float32."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Parse one line.

        Raises:
            ValueError: If it is no such line.
        """
        try:
            return cls._from_fields(json.loads(line))
        except (TypeError, AttributeError, KeyError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a {cls.kind} record: {line[:80]!r}") from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields)


@dataclass
class ImageRecord(Record):
    """One classified image.

    Attributes:
        image_id: Stable id.
        label: True class; in a multi-label dataset all of them, ascending.
        prediction: Predicted class.
        classes: Class of every evaluated (class, trial) pair.
        trials: Trial index of each pair.
        timesteps: Timestep of each pair.
        errors: Float32 error of each pair.
        survivors: Classes left after each stage.
        seconds: Wall time of the batch divided by its images.
        digest: Hash of the image file; None if it is unknown.
        bands: Float32 parts of each error by frequency; empty if they were not asked for.
    """

    kind = "prediction"
    image_id: str
    label: int | Sequence[int]
    prediction: int
    classes: Sequence[int]
    trials: Sequence[int]
    timesteps: Sequence[int]
    errors: Sequence[float]
    survivors: Sequence[Sequence[int]]
    seconds: float
    digest: str | None = None
    bands: Sequence[Sequence[float]] | npt.NDArray[np.float32] = field(default_factory=tuple)

    @cached_property
    def evaluations(self) -> int:
        """Number of pairs."""
        return len(self.errors)

    @cached_property
    def width(self) -> int:
        """The largest trial index, plus 1."""
        return 1 + max(self.trials, default=0)

    @property
    def labels(self) -> Sequence[int]:
        """All true classes."""
        return (self.label,) if isinstance(self.label, int) else self.label

    def to_json(self) -> str:
        """Return one line; errors have the fewest digits that read back to the same float32."""
        line = {name: getattr(self, name) for name in self.__dataclass_fields__}
        pairs = {name: list(line[name]) for name in ("classes", "trials", "timesteps")}
        line |= {**pairs, "errors": _shortest(self.errors), "bands": [_shortest(parts) for parts in self.bands]}
        return json.dumps({name: value for name, value in line.items() if name != "bands" or value})

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        # Arrays, since a run of ImageNet-1K has hundreds of millions of pairs.
        fields |= {name: array("i", fields[name]) for name in ("classes", "trials", "timesteps")}
        bands = np.array(fields["bands"], np.float32) if "bands" in fields else ()
        return cls(**fields | {"errors": array("f", fields["errors"]), "bands": bands})


def _shortest(values: Sequence[float]) -> list[float]:
    return [float(str(np.float32(value))) for value in values]


@dataclass
class SampleRecord(Record):
    """One generated image.

    Attributes:
        image_id: Id of the dataset's item for which it was generated.
        labels: Classes of that item.
        prompt: The prompt of a text-conditional model.
        seconds: Wall time of the batch divided by its images.
        features: Of the image, for distances, `(d,)` float32; None without an extractor.
        measured: Values of the metrics of single images, by their name, such as `clip_score`.
    """

    kind = "sample"
    image_id: str
    labels: Sequence[int]
    prompt: str
    seconds: float
    features: Sequence[float] | npt.NDArray[np.float32] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        features = None if self.features is None else _packed(self.features)
        line = {name: value for name, value in vars(self).items() if name != "measured"}
        return json.dumps({**line, "features": features, **self.measured})

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        fixed = {name: fields.pop(name) for name in ("image_id", "labels", "prompt", "seconds", "features")}
        if fixed["features"] is not None:
            fixed["features"] = _unpacked(fixed["features"])
        return cls(**fixed, measured=fields)


@dataclass
class FeatureRecord(Record):
    """The features of one image.

    Attributes:
        image_id: Stable id.
        labels: All true classes.
        seconds: Wall time of the batch divided by its images.
        features: Pooled features `(d,)`, float32, by site and timestep, such as `2@100`.
        high_frequency: Share of their energy in high spatial frequencies, by the same names.
        digest: Hash of the image file; None if it is unknown.
    """

    kind = "feature"
    image_id: str
    labels: Sequence[int]
    seconds: float
    features: Mapping[str, npt.NDArray[np.float32]]
    high_frequency: Mapping[str, float]
    digest: str | None = None

    def to_json(self) -> str:
        return json.dumps({**vars(self), "features": {name: _packed(x) for name, x in self.features.items()}})

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"features": {name: _unpacked(text) for name, text in fields["features"].items()}})


def _packed(features: Sequence[float] | npt.NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(features, "<f4").tobytes()).decode()


def _unpacked(text: Any) -> npt.NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
