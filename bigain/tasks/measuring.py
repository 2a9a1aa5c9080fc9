"""Which metrics of generated images can be computed, and what they measure of each image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_only

from bigain.errors import InputError
from bigain.metrics.agreement import Agreement
from bigain.metrics.base import Images, Metric
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.kernel import KernelDistance
from bigain.metrics.precision_recall import PrecisionRecall
from bigain.metrics.reference import ReferenceStatistics
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tokens.precision import without_autocast

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measuring:
    """The metrics of a generation and what they need.

    Attributes:
        metrics: Those that can be computed, in the order of the results.
        extractor: Of features, loaded; None if there is none or its weights are missing.
        reference: Statistics of real images; None if there are none.
        missing: Why metrics cannot be computed, by their `name`.
        forwards: Batches of extractor and metrics; on a CPU results do not depend on those of the run.
    """

    metrics: Sequence[Metric] = ()
    extractor: FeatureExtractor | None = None
    reference: ReferenceStatistics | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    forwards: Forwards = field(default_factory=lambda: Forwards(None, "images of a metric", ROWS_ON_CPU // 2))

    def measure(self, images: Images) -> tuple[Sequence[npt.NDArray[np.float32] | None], list[dict[str, float]]]:
        """Measure a batch of images.

        Args:
            images: b images.

        Returns:
            The features of each image, `(d,)`, None without an extractor; and the value of each metric by its `name`.
        """
        pixels, extractor = images.pixels, self.extractor
        features: Sequence[npt.NDArray[np.float32] | None] = [None] * len(pixels)
        if extractor is not None:
            with without_autocast(pixels):
                rows = self.forwards.run(
                    lambda i, first, last: extractor(pixels[i]).float(), len(pixels), pixels.device
                )
            features = list(rows.cpu().numpy())
        measured = [metric for metric in self.metrics if "images" in metric.needs]
        columns = {metric.name: self._column(metric, images) for metric in measured}
        return features, [{name: column[i] for name, column in columns.items()} for i in range(len(pixels))]

    def _column(self, metric: Metric, images: Images) -> list[float]:
        """Return the values of a metric, one per image."""
        pixels = images.pixels
        values = self.forwards.run(lambda i, first, last: metric.measure(images.at(i)), len(pixels), pixels.device)
        return list(map(float, values.tolist()))


def distances(reference: ReferenceStatistics) -> list[Metric]:
    """Return the metrics of all features against a reference."""
    return [FrechetDistance(reference), KernelDistance(reference), PrecisionRecall(reference)]


def find_reference(reference: str) -> Path:
    """Return the path of a reference file, or of the reference of the embedded extractor with this name."""
    embedded = Path(str(resources.files("bigain"))) / "assets" / reference / "reference.npz"
    return embedded if embedded.is_file() else Path(reference).expanduser()


def prepare_measuring(
    extractor: FeatureExtractor | None, reference: str | None, metrics: Sequence[Metric], keeps_images: bool
) -> Measuring:
    """Load the extractor and the reference, and find out which metrics can be computed.

    Images are worth generating without metrics, so what is missing is a warning; a wrong file is an error.

    Args:
        extractor: Of features, loaded or not.
        reference: An `.npz` file, or the name of an embedded extractor.
        metrics: Further metrics.
        keeps_images: Whether missing metrics can be computed later.

    Raises:
        InputError: If a reference has a different protocol, or nothing at all would be kept of the images.
    """
    missing: dict[str, str] = {}
    chosen: list[Metric] = []
    loaded, statistics = None, None
    if extractor is None:
        missing["distance"] = "no extractor was asked for"
    else:
        try:
            extractor.load()
            loaded = extractor
        except InputError as error:
            if not keeps_images:
                raise
            missing["distance"] = str(error)
        if reference is None:
            missing.setdefault("distance", "no reference statistics were given")
        elif not (path := find_reference(reference)).is_file():
            missing.setdefault("distance", f"reference {path} does not exist")
        else:
            digest = "" if loaded is None else loaded.digest()
            statistics = ReferenceStatistics.load(path, extractor.protocol, extractor.dimension, digest)
            chosen += distances(statistics) if loaded is not None else []
        chosen += [Agreement(loaded)] if loaded is not None else []
        if "distance" in missing:
            kept = "Images are kept for `bigain score`" if keeps_images else "Features are kept"
            _warn(f"warning: no distance will be computed: {missing['distance']}. {kept}")
    for metric in metrics:
        if (reason := metric.unavailable()) is None:
            chosen.append(metric)
        else:
            missing[metric.name] = reason
            kept = f". Images are kept for `{metric.later}`" if metric.later else ""
            _warn(f"warning: no {metric.title or metric.name} will be computed: {reason}{kept}")
    return Measuring(chosen, loaded, statistics, missing)


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
