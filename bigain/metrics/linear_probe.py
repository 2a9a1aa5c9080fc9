"""Linear probe: accuracy of logistic regression on features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.data.class_space import ClassSpace
from bigain.data.selection import Item, stratified
from bigain.metrics.representation import Labels, RepresentationClassifier, column
from bigain.runs.files import read_json
from bigain.runs.logs import read_records
from bigain.runs.numbers import counted
from bigain.runs.records import FeatureRecord
from bigain.runs.results import has_results

# Weights of the L2 penalty, from strong to weak: each fit starts from the one before.
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_HELD_OUT = 5
_ITERATIONS = 200


class LinearProbe(RepresentationClassifier):
    """`linear_probe`: accuracy of logistic regression that was fitted to the features of a training split.

    Features are standardised by the mean and deviation of the training images. The strength of the L2 penalty is the
    one of five, from 1e-1 to 1e-5, that is most accurate on a fifth of the training images of each class; of equal ones
    the strongest. The final weights are fitted to all of them by L-BFGS, in float64, on a GPU if there is one.
    """

    name = "linear_probe"

    def __init__(self, training: Path, class_names: Sequence[str]) -> None:
        """Take the run directory of the training features, and the names of the classes of the evaluated images."""
        super().__init__()
        self.training, self.class_names = training, list(class_names)

    def incomplete(self, records: Sequence[FeatureRecord]) -> str | None:
        if not has_results(self.training):
            return f"{self.training} has no features of the training split; run it by `bigain predict`"
        classes = read_json(self.training / "predictions" / "classes.json", dict[str, Any])
        if classes.get("names") != self.class_names:
            return f"the classes of the training split in {self.training} are not those of the evaluated images"
        log = read_records(self.training / "predictions", FeatureRecord)
        self._log = [log[image_id] for image_id in sorted(log) if len(log[image_id].labels) == 1]
        if not self._log:
            return f"no image in {self.training} has exactly one label"
        evaluated = {record.digest for record in records} - {None}
        if leaked := [record.image_id for record in self._log if record.digest in evaluated]:
            number = counted(len(leaked), "training image")
            return f"{number}, such as {leaked[0]}, evaluated as well; choose another split"
        trained = {record.labels[0] for record in self._log}
        if absent := [label for record in records for label in record.labels if label not in trained]:
            return f"the training split has no image of {self.class_names[absent[0]]!r}, which is evaluated"
        return super().incomplete(records)

    def predict(self, records: Sequence[FeatureRecord], names: Sequence[str], space: ClassSpace) -> Labels:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def features(of_records: Sequence[FeatureRecord]) -> Tensor:
            return torch.from_numpy(np.concatenate([column(of_records, name) for name in names], 1)).to(device)

        # Lightning ends a run in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            labels = torch.tensor([record.labels[0] for record in self._log], device=device)
            x, is_held_out = features(self._log), torch.tensor(self.held_out(), device=device)
            mean, scale = x.mean(0), x.std(0, correction=0)
            scale = scale.where(scale > 0, 1.0)
            x = (x - mean) / scale
            fits = [x.new_zeros(x.shape[1] + 1, len(space))]
            for strength in STRENGTHS:
                fits.append(fit(x[~is_held_out], labels[~is_held_out], fits[-1], strength))
            correct = [int((classes_of(x[is_held_out], weights) == labels[is_held_out]).sum()) for weights in fits[1:]]
            best = int(np.argmax(correct))
            weights = fit(x, labels, fits[1 + best], STRENGTHS[best])
            return np.asarray(classes_of((features(records) - mean) / scale, weights).cpu())

    def held_out(self) -> list[bool]:
        """Return which training images choose the strength, a function of their ids."""
        items = [Item(record.image_id, tuple(record.labels)) for record in self._log]
        chosen = {*stratified(items, len(items) // _HELD_OUT, 0)}
        return [item in chosen for item in items]


def fit(x: Tensor, labels: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Minimise the mean cross-entropy plus `strength / 2` times the squared weights, without the biases, by L-BFGS.

    `(n, d)` float64, `(n,)` int64, the first guess `(d + 1, k)` with the biases in the last row -> `(d + 1, k)`.
    """
    weights = weights.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weights[:-1] + weights[-1], labels)
        value = value + strength / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def classes_of(x: Tensor, weights: Tensor) -> Tensor:
    """Return the most likely class of features. `(n, d)`, `(d + 1, k)` -> `(n,)`, int64."""
    return (x @ weights[:-1] + weights[-1]).argmax(1)
