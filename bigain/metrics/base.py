"""The interface of a metric, and estimates with their intervals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigain.data.class_space import ClassSpace
from bigain.runs.numbers import counted
from bigain.runs.schema import Better, Estimate, MetricEstimate

Z95 = 1.959963984540054

Need = Literal["images", "prompts", "features", "other images"]


@dataclass(frozen=True)
class Images:
    """A batch of generated images.

    Attributes:
        pixels: RGB in [0, 255]. `(b, 3, h, w)`, uint8.
        prompts: Prompt of each image; empty if no metric needs them.
        others: Images of the same items from another run, of the same shape and dtype; only where runs are compared.
    """

    pixels: Tensor
    prompts: Sequence[str] = ()
    others: Tensor | None = None

    def at(self, indices: Tensor) -> Images:
        """Return the images at these indices. `(n,)`, int64."""
        prompts = [self.prompts[i] for i in indices.tolist()] if self.prompts else ()
        return Images(self.pixels[indices], prompts, None if self.others is None else self.others[indices.cpu()])


class Metric(ABC):
    """A metric of a run.

    Every process appends what it measures of each image to its own log. At the end of the run the first process reads
    the logs of all processes and calls `estimates` once, so a metric never communicates between processes itself.

    Attributes:
        name: Key of the per-image value in the log. Also the key, as `<name>_missing`, of the reason in `results.json`
            if the metric could not be computed.
        title: Name in messages.
        needs: `images`: calls `measure` on every batch; `prompts`: with their prompts; `features`: features of every
            image from the sampler's extractor; `other images`: images of another run. Empty for a classification.
        later: Command that computes the metric for a finished run; empty if there is none.
        unit: Unit of the estimates, such as `dB`. `%` marks proportions in [0, 1], which are shown in percent.
        better: Whether a higher or a lower value is better; None if neither is.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    later: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    better: ClassVar[Better | None] = None

    def unavailable(self) -> str | None:
        """Return why the metric cannot be computed here, such as missing weights; None if it can."""
        return None

    def measure(self, images: Images) -> Tensor:
        """Return one value per image, `(b,)`; called only if `needs` contains `images`."""
        raise NotImplementedError(f"{type(self).__name__} measures no images")

    def incomplete(self, records: Sequence[Any]) -> str | None:
        """Return why these records are not enough for an estimate; None if they are."""
        count, noun = 0, self.title or self.name
        if "features" in self.needs:
            count, noun = sum(record.features is None for record in records), "features"
        elif "images" in self.needs:
            count = sum(self.name not in record.measured for record in records)
        advice = f"{counted(count, 'image')} without {noun}; run {self.later or 'into another --output'}"
        return advice if count else None

    @abstractmethod
    def estimates(self, records: Sequence[Any], space: ClassSpace) -> Mapping[str, Estimate]:
        """Return estimates by name.

        Records are those of all images of the run in the order of their ids, at least one: `ImageRecord` of a
        classification, `SampleRecord` of a generation, with `features` and with `measured` by the metric's `name`.
        """


class ImageMetric(Metric, ABC):
    """A metric with one value per generated image, averaged over images."""

    needs: ClassVar[frozenset[Need]] = frozenset({"images"})

    @property
    def label(self) -> str:
        """Name of the estimate, with the model that decides it, such as `clip_score[vit-large]`."""
        return self.name

    @abstractmethod
    def measure(self, images: Images) -> Tensor:
        """Return one value per image. `(b,)`."""

    def estimates(self, records: Sequence[Any], space: ClassSpace) -> Mapping[str, Estimate]:
        """Return the mean over images with its 95 % interval. Infinite values are left out."""
        values = [record.measured[self.name] for record in records]
        finite = [value for value in values if not math.isinf(value)]
        return {self.label: mean_estimate(finite)} if finite else {}


class FeatureMetric(Metric):
    """A metric of the features of all generated images. Those of one `name` are missing for the same reason."""

    name = "distance"
    needs = frozenset({"features"})
    later = "bigain score"

    def features(self, records: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return the features of all images. `(n, d)`."""
        return np.asarray([record.features for record in records], np.float32)


def evaluate(
    metrics: Sequence[Metric], records: Sequence[Any], space: ClassSpace
) -> tuple[dict[str, MetricEstimate], dict[str, str]]:
    """Return the estimates of metrics by name, and why metrics have none, by the metrics' `name`."""
    estimates: dict[str, MetricEstimate] = {}
    missing: dict[str, str] = {}
    # The last digits of sums over images depend on their order.
    records = sorted(records, key=lambda record: str(record.image_id))
    for metric in metrics:
        if (reason := metric.incomplete(records)) is not None:
            missing.setdefault(metric.name, reason)
        else:
            for name, estimate in metric.estimates(records, space).items():
                estimates[name] = {"unit": metric.unit, "better": metric.better, **estimate}
    return estimates, missing


def normal_estimate(value: float, error: float, n: int, low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Return an estimate over n images with the interval of 1.96 standard errors, cut off at `low` and `high`."""
    return Estimate(value=value, low=max(low, value - Z95 * error), high=min(high, value + Z95 * error), n=n)


def jackknife_error(left_out: npt.NDArray[np.float64]) -> float:
    """Return the standard error of an estimate from its values without each of n images (Tukey, 1958). `(n,)`."""
    return float(left_out.std() * (len(left_out) - 1) ** 0.5)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value, one per image, with its 95 % interval."""
    column = torch.tensor(values, dtype=torch.float64)
    error = float(column.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return normal_estimate(float(column.mean()), error, len(values))


def proportion(correct: int, n: int) -> Estimate:
    """Return the proportion of `correct` among `n`, at least 1, with its 95 % Wilson score interval."""
    p = correct / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    # Rounding must not move the estimate out of its own interval at 0 and n.
    return Estimate(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)
