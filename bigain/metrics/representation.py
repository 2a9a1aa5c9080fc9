"""Metrics of the features of a `FeatureProbe`: of all of them together, and of each site and timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bigain.data.class_space import ClassSpace
from bigain.metrics.accuracy import accuracies
from bigain.metrics.base import Metric, jackknife_error, mean_estimate, normal_estimate
from bigain.runs.records import FeatureRecord
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_TEMPERATURE = 0.07
# Rows of similarities in memory at a time.
_ROWS = 1024
_TINY = np.finfo(np.float64).tiny


class RepresentationMetric(Metric):
    """A metric of features: `name` of all of them together and, if there are several, `name[2@100]` of each."""

    def incomplete(self, records: Sequence[FeatureRecord]) -> str | None:
        return None if len(records) > 1 else "it takes at least two images"

    def estimates(self, records: Sequence[FeatureRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        return {self.name + suffix: self.estimate(records, names) for suffix, names in feature_groups(records).items()}

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        """Return the estimate of at least two images, from the features of these sites and timesteps."""
        raise NotImplementedError


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
        estimates: dict[str, Estimate] = {}
        if any(len(record.labels) != 1 for record in records):
            return estimates
        labels = [record.labels[0] for record in records]
        for suffix, names in feature_groups(records).items():
            name = self.name + suffix
            predicted = self.predictions[name] = self.predict(records, names, space)
            shares = accuracies(labels, predicted.tolist(), {} if suffix else space.factors)
            estimates |= {name if factor == "top1" else f"{name}_{factor}": share for factor, share in shares.items()}
        return estimates

    def predict(self, records: Sequence[FeatureRecord], names: Sequence[str], space: ClassSpace) -> Labels:
        """Return the predicted class of every image, from the features of these sites and timesteps. `(n,)`."""
        raise NotImplementedError


class NearestNeighbours(RepresentationClassifier):
    """`knn`: accuracy when the other images vote on the class of each image.

    The 20 most similar ones vote with the weight `exp(cosine / 0.07)`, as in Wu et al., Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination (CVPR 2018), and DINO (Caron et al., 2021). Different from these, an
    image's neighbours are the other images of the same split, and features are centred: see `centred`.
    """

    name = "knn"
    neighbours = 20

    def incomplete(self, records: Sequence[FeatureRecord]) -> str | None:
        distinct = len({tuple(record.labels) for record in records}) == len(records)
        reason = "no two images have the same class, so no neighbour can be right" if distinct else None
        return super().incomplete(records) or reason

    def predict(self, records: Sequence[FeatureRecord], names: Sequence[str], space: ClassSpace) -> Labels:
        x = centred(records, names)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        labels, k = np.array([record.labels[0] for record in records]), min(self.neighbours, len(x) - 1)
        predicted = np.empty(len(x), np.int64)
        for start in range(0, len(x), _ROWS):
            cosines = x[start : start + _ROWS] @ x.T
            rows = np.arange(len(cosines))[:, None]
            cosines[rows, rows + start] = -np.inf
            nearest = np.argpartition(-cosines, k - 1)[:, :k]
            votes = np.zeros((len(cosines), len(space)))
            np.add.at(votes, (rows, labels[nearest]), np.exp((cosines[rows, nearest] - 1) / _TEMPERATURE))
            predicted[start : start + _ROWS] = votes.argmax(1)
        return predicted


class EffectiveRank(RepresentationMetric):
    """`effective_rank`: exponential of the entropy of the singular values of features, divided by their sum.

    Source: Roy and Vetterli, The Effective Rank (EUSIPCO 2007). Features are centred, unlike in RankMe (Garrido et al.,
    ICML 2023), since their mean over images would be one large singular value. At most the number of images minus 1:
    compare runs of the same images. Its interval is from the infinitesimal jackknife (Jaeckel, 1972): the derivative by
    the weight of each image.
    """

    name = "effective_rank"

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        x = centred(records, names)
        images, values, _ = np.linalg.svd(x, full_matrices=False)
        used = values > values[0] * max(x.shape) * np.finfo(np.float64).eps
        if not used.any():
            return normal_estimate(1.0, 0.0, len(x))
        share = values[used] / values[used].sum()
        entropy = -(share * np.log(share)).sum()
        rank = float(np.exp(entropy))
        # Of a covariance, an image's weight moves eigenvalue k by the square of its component there.
        influence = rank / 2 * np.square(images[:, used]) @ (share * (-np.log(share) - entropy))
        error, limit = float(np.sqrt(np.square(influence).sum())), float(min(len(x) - 1, x.shape[1]))
        return normal_estimate(rank, error, len(x), 1.0, limit)


class HighFrequency(RepresentationMetric):
    """`high_frequency`: share of the energy of token maps in the upper half of spatial frequencies, mean over images.

    After the high-frequency ratio by which A-SelecT (Liu et al., 2026) selects timesteps. Different from it, energies
    are those of the cosine transform, frequencies at least half of the highest radius of `radial_bands` are high, and
    the mean over the map, mostly the same for all images, does not count.
    """

    name = "high_frequency"
    unit = "%"

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        shares = np.array([[record.high_frequency[name] for name in names] for record in records])
        return mean_estimate(shares.mean(1).tolist())


class Cosine(RepresentationMetric):
    """`cosine` to the features of another run, averaged over images; of several sites and timesteps, over these too.

    Not centred: channels that are large in all images make it large, so it is close to 1 long before CKA is.
    """

    name = "cosine"
    better = "higher"

    def __init__(self, other_records: Mapping[str, FeatureRecord]) -> None:
        """Take the records of the other run by image id; all images of the run need one."""
        self.other_records = other_records

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        other_records, cosines = [self.other_records[record.image_id] for record in records], []
        for name in names:
            x, y = column(records, name), column(other_records, name)
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosines.append((x * y).sum(1) / np.maximum(norms, _TINY))
        return mean_estimate(np.mean(cosines, 0).tolist())


class Cka(Cosine):
    """`cka`: linear centred kernel alignment in [0, 1]; 1 if features are equal up to rotation and scale.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited (ICML 2019), for features X, Y with
    centred columns: `|Y^T X|^2 / (|X^T X| |Y^T Y|)`, in Frobenius norms. The estimate is biased upwards where images
    are fewer than channels. Its interval is that of the jackknife over images.
    """

    name = "cka"

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        other_records = [self.other_records[record.image_id] for record in records]
        x, y = (_reduced(centred(run, names)) for run in (records, other_records))
        xy, xy_left_out = _alignment(x, y)
        xx, xx_left_out = _alignment(x, x)
        yy, yy_left_out = _alignment(y, y)
        # Features that are the same for all images are aligned with nothing.
        value = xy / ((xx * yy) ** 0.5 or 1.0)
        left_out = xy_left_out / np.sqrt(np.maximum(xx_left_out * yy_left_out, _TINY))
        return normal_estimate(value, jackknife_error(left_out), len(x), 0.0, 1.0)


def feature_groups(records: Sequence[FeatureRecord]) -> dict[str, list[str]]:
    """Return the names of features by the suffix of the estimate: all without one and, if there are several, each."""
    names = list(records[0].features)
    return {"": names} | ({f"[{name}]": [name] for name in names} if len(names) > 1 else {})


def column(records: Sequence[FeatureRecord], name: str) -> Array:
    """Return the features of images at one site and timestep. `(n, d)`."""
    return np.array([record.features[name] for record in records], np.float64)


def centred(records: Sequence[FeatureRecord], names: Sequence[str]) -> Array:
    """Return centred features side by side, each site and timestep scaled to a mean square norm of 1. `(n, d)`.

    A few channels of a diffusion network are large and the same for all images; only differences between images count.
    """
    columns = [column(records, name) for name in names]
    columns = [x - x.mean(0) for x in columns]
    return np.concatenate([x / (np.square(x).sum(1).mean() ** 0.5 or 1.0) for x in columns], 1)


def _alignment(x: Array, y: Array) -> tuple[float, Array]:
    """Return the squared norm of `y^T x` of centred features, and its values without each image, centred again.

    Without image i the product is `y^T x - n / (n - 1) y_i x_i^T`.
    """
    product, factor = x.T @ y, len(x) / (len(x) - 1)
    norm = float(np.square(product).sum())
    left_out = norm - 2 * factor * ((x @ product) * y).sum(1)
    return norm, left_out + factor**2 * np.square(x).sum(1) * np.square(y).sum(1)


def _reduced(x: Array) -> Array:
    """Return features with the same inner products and at most n columns. `(n, d)` -> `(n, min(n, d))`."""
    if x.shape[1] <= len(x):
        return x
    values, vectors = np.linalg.eigh(x @ x.T)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
