"""Accuracy of nearest neighbours: no training, no split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.metrics.representation import Labels, RepresentationClassifier, centred
from bigain.runs.records import FeatureRecord

_TEMPERATURE = 0.07
# Rows of similarities in memory at a time.
_ROWS = 1024


class NearestNeighbours(RepresentationClassifier):
    """`knn`: accuracy when the other images vote on the class of each image.

    The 20 most similar ones vote with the weight `exp(cosine / 0.07)`, as in Wu et al., Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination (CVPR 2018), and DINO (Caron et al., 2021). Different from these, an
    image's neighbours are the other images of the same split, and features are centred: see `centred`.
    """

    name = "knn"

    def __init__(self, neighbours: int = 20) -> None:
        """Set the number of votes, at most one of each other image."""
        super().__init__()
        self.neighbours = neighbours

    def predict(self, records: Sequence[FeatureRecord], names: Sequence[str], space: ClassSpace) -> Labels:
        x = centred(records, names)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        labels = np.array([record.labels[0] for record in records])
        n, k = len(x), min(self.neighbours, len(x) - 1)
        predicted = np.empty(n, np.int64)
        for start in range(0, n, _ROWS):
            cosines = x[start : start + _ROWS] @ x.T
            rows = np.arange(len(cosines))[:, None]
            cosines[rows, rows + start] = -np.inf
            nearest = np.argpartition(-cosines, k - 1)[:, :k]
            votes = np.zeros((len(cosines), len(space)))
            np.add.at(votes, (rows, labels[nearest]), np.exp((cosines[rows, nearest] - 1) / _TEMPERATURE))
            predicted[start : start + _ROWS] = votes.argmax(1)
        return predicted
