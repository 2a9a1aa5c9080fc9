"""What is kept of each classified or generated image, as a JSON line."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

# What a column of `predictions.npz`, or a packed record, can hold.
_LAST_INDEX = 2**31 - 1
_LAST_TIMESTEP = 2**15 - 1
_LONGEST_S = 1e9


class Record(Protocol):
    """One line of a run's log."""

    @property
    def image_id(self) -> str:
        """Stable id of the image."""
        ...

    @property
    def seconds(self) -> float:
        """Wall time of the batch divided by its images."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """All true classes of the image."""
        ...

    def to_json(self) -> str:
        """One line."""
        ...

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line, or raise a ValueError."""
        ...


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

    @property
    def labels(self) -> Sequence[int]:
        """All true classes."""
        return (self.label,) if isinstance(self.label, int) else self.label

    def to_json(self) -> str:
        """One line; errors are written with the fewest digits that read back to the same float32."""
        pairs = {name: list(getattr(self, name)) for name in ("classes", "trials", "timesteps")}
        errors = [float(str(np.float32(error))) for error in self.errors]
        return json.dumps({**vars(self), **pairs, "errors": errors}, allow_nan=True)

    @classmethod
    def from_json(cls, line: str) -> ImageRecord:
        """Read one line; its pairs come as arrays, since a run of ImageNet-1K has hundreds of millions.

        Raises:
            ValueError: If the line is torn or lacks a field.
        """
        try:
            record = cls(**json.loads(line))
        except (TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not a prediction record: {line[:80]!r}") from error
        if not record._is_sound():
            raise ValueError(f"a field of this prediction record is of no use: {line[:80]!r}")
        record._pack()
        return record

    def _pack(self) -> None:
        self.classes, self.trials, self.timesteps = (
            array("i", pairs) for pairs in (self.classes, self.trials, self.timesteps)
        )
        self.errors = array("f", self.errors)

    def _is_sound(self) -> bool:
        pairs = (self.classes, self.trials, self.timesteps, self.errors)
        return (
            _is_named_and_timed(self)
            and (_are_indices(self.label) or _are_indices([self.label]))
            and _are_indices([self.prediction])
            and all(map(_are_indices, pairs[:3]))
            and _are_floats(self.errors)
            and len(set(map(len, pairs))) == 1
            and max((*self.classes, *self.trials), default=0) <= _LAST_INDEX
            and max(self.timesteps, default=0) <= _LAST_TIMESTEP
            and isinstance(self.survivors, list)
            and all(map(_are_indices, self.survivors))
        )


@dataclass
class SampleRecord:
    """One generated image.

    Attributes:
        image_id: Id of the dataset's item it was made for.
        labels: Classes of that item.
        prompt: What a text-conditional model was given.
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
        """One line; features are base64 of little-endian float32."""
        features = None
        if self.features is not None:
            features = base64.b64encode(np.asarray(self.features, "<f4").tobytes()).decode()
        line = {name: value for name, value in vars(self).items() if name != "measured"}
        return json.dumps({**line, "features": features, **self.measured})

    @classmethod
    def from_json(cls, line: str) -> SampleRecord:
        """Read one line.

        Raises:
            ValueError: If the line is torn or lacks a field.
        """
        try:
            fields = json.loads(line)
            if fields["features"] is not None:
                fields["features"] = np.frombuffer(base64.b64decode(fields["features"], validate=True), "<f4")
            own = {name: fields.pop(name) for name in ("image_id", "labels", "prompt", "seconds", "features")}
            # Earlier versions wrote a null for what was not measured.
            record = cls(**own, measured={name: value for name, value in fields.items() if value is not None})
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"not a sample record: {line[:80]!r}") from error
        measured = list(record.measured.values())
        sound = _is_named_and_timed(record) and _are_indices(record.labels) and _are_floats(measured)
        if not sound or not isinstance(record.prompt, str):
            raise ValueError(f"a field of this sample record is of no use: {line[:80]!r}")
        return record


def _is_named_and_timed(record: Record) -> bool:
    timed = isinstance(record.seconds, (int, float)) and 0 <= record.seconds < _LONGEST_S
    return isinstance(record.image_id, str) and timed


def _are_floats(values: Any) -> bool:
    # By type: a record has thousands of numbers.
    return isinstance(values, list) and set(map(type, values)) <= {float}


def _are_indices(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int} and min(values, default=0) >= 0
