"""Records of classified and generated images and of features, one JSON line each."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt


# Not frozen: with `return_predictions`, Lightning copies what a step returns and sets the fields of the copy.
@dataclass
class ImageRecord:
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
    def from_json(cls, line: str) -> ImageRecord:
        """Parse one line. The pairs become arrays, since a run of ImageNet-1K has hundreds of millions.

        Raises:
            ValueError: If it is no such line.
        """
        try:
            record = cls(**json.loads(line))
            pairs = (record.classes, record.trials, record.timesteps)
            record.classes, record.trials, record.timesteps = (array("i", values) for values in pairs)
            record.errors = array("f", record.errors)
            record.bands = np.array(record.bands, np.float32) if record.bands else ()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a prediction record: {line[:80]!r}") from error
        return record


def _shortest(values: Sequence[float]) -> list[float]:
    return [float(str(np.float32(value))) for value in values]


@dataclass
class SampleRecord:
    """One generated image.

    Attributes:
        image_id: Id of the dataset's item for which it was generated.
        labels: Classes of that item.
        prompt: The prompt of a text-conditional model.
        seconds: Wall time of the batch divided by its images.
        features: Of the image, for distances, `(d,)` float32; None without an extractor.
        measured: Values of the metrics of single images, by their name, such as `clip_score`.
    """

    image_id: str
    labels: Sequence[int]
    prompt: str
    seconds: float
    features: Sequence[float] | npt.NDArray[np.float32] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line; features are base64 of little-endian float32."""
        features = None if self.features is None else _packed(self.features)
        line = {name: value for name, value in vars(self).items() if name != "measured"}
        return json.dumps({**line, "features": features, **self.measured})

    @classmethod
    def from_json(cls, line: str) -> SampleRecord:
        """Parse one line.

        Raises:
            ValueError: If it is no such line.
        """
        try:
            fields = json.loads(line)
            if fields["features"] is not None:
                fields["features"] = _unpacked(fields["features"])
            own = {name: fields.pop(name) for name in ("image_id", "labels", "prompt", "seconds", "features")}
            return cls(**own, measured=fields)
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"not a sample record: {line[:80]!r}") from error


@dataclass
class FeatureRecord:
    """The features of one image.

    Attributes:
        image_id: Stable id.
        labels: All true classes.
        seconds: Wall time of the batch divided by its images.
        features: Pooled features `(d,)`, float32, by site and timestep, such as `2@100`.
        high_frequency: Share of their energy in high spatial frequencies, by the same names.
        digest: Hash of the image file; None if it is unknown.
    """

    image_id: str
    labels: Sequence[int]
    seconds: float
    features: Mapping[str, npt.NDArray[np.float32]]
    high_frequency: Mapping[str, float]
    digest: str | None = None

    def to_json(self) -> str:
        """Return one line; features are base64 of little-endian float32."""
        return json.dumps({**vars(self), "features": {name: _packed(x) for name, x in self.features.items()}})

    @classmethod
    def from_json(cls, line: str) -> FeatureRecord:
        """Parse one line.

        Raises:
            ValueError: If it is no such line.
        """
        try:
            record = cls(**json.loads(line))
            record.features = {name: _unpacked(text) for name, text in record.features.items()}
            return record
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a feature record: {line[:80]!r}") from error


def _packed(features: Sequence[float] | npt.NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(features, "<f4").tobytes()).decode()


def _unpacked(text: Any) -> npt.NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


Record: TypeAlias = ImageRecord | SampleRecord | FeatureRecord
