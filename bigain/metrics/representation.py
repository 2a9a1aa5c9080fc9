"""Metrics of the features of a `FeatureProbe`: of each site and timestep, and of all of them together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bigain.data.class_space import ClassSpace
from bigain.metrics.accuracy import accuracies
from bigain.metrics.base import Metric
from bigain.runs.records import FeatureRecord
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class RepresentationMetric(Metric):
    """A metric of features: `name` of all of them together and, if there are several, `name[2@100]` of each."""

    def incomplete(self, records: Sequence[FeatureRecord]) -> str | None:
        return None if len(records) > 1 else "it takes at least two images"

    def estimates(self, records: Sequence[FeatureRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        return {self.name + end: self.estimate(records, names) for end, names in parts(records).items()}

    @abstractmethod
    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        """Return the estimate of at least two images, from the features of these sites and timesteps."""


class RepresentationClassifier(RepresentationMetric):
    """A classifier on features. There is no estimate if an image has not exactly one label.

    Attributes:
        predictions: Predicted class of every image, in the order of their ids, by the name of the estimate. `(n,)`.
    """

    unit = "%"
    better = "higher"

    def __init__(self) -> None:
        self.predictions: dict[str, Labels] = {}

    def estimates(self, records: Sequence[FeatureRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        """Return the accuracy, and of all features together that of each factor, such as `knn_shape`."""
        found: dict[str, Estimate] = {}
        if any(len(record.labels) != 1 for record in records):
            return found
        labels = [record.labels[0] for record in records]
        for end, names in parts(records).items():
            predicted = self.predictions[self.name + end] = self.predict(records, names, space)
            for factor, estimate in accuracies(labels, predicted.tolist(), {} if end else space.factors).items():
                found[self.name + end if factor == "top1" else f"{self.name}_{factor}"] = estimate
        return found

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        raise NotImplementedError

    @abstractmethod
    def predict(self, records: Sequence[FeatureRecord], names: Sequence[str], space: ClassSpace) -> Labels:
        """Return the predicted class of every image, from the features of these sites and timesteps. `(n,)`."""


def parts(records: Sequence[FeatureRecord]) -> dict[str, list[str]]:
    """Return the names of features by the end of an estimate's name: all by an empty one, each by its own."""
    names = list(records[0].features)
    return {"": names} | ({f"[{name}]": [name] for name in names} if len(names) > 1 else {})


def column(records: Sequence[FeatureRecord], name: str) -> Array:
    """Return the features of images at one site and timestep. `(n, d)`."""
    return np.array([record.features[name] for record in records], np.float64)


def centred(records: Sequence[FeatureRecord], names: Sequence[str]) -> Array:
    """Return centred features side by side, each site and timestep scaled to a mean square norm of 1. `(n, d)`.

    A few channels of a diffusion network are large and the same for all images; only differences between images count.
    """
    columns = []
    for name in names:
        x = column(records, name)
        x -= x.mean(0)
        columns.append(x / (np.square(x).sum(1).mean() ** 0.5 or 1.0))
    return np.concatenate(columns, 1)
