"""Weights over timesteps, tried on the stored errors of a run: chosen ones, and ones fitted to other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.report.explain.margins import Floats, read_errors
from bigain.report.statistics import Paired, difference_interval, mcnemar
from bigain.report.tables import indented
from bigain.runs.files import read_json
from bigain.runs.names import label
from bigain.runs.numbers import counted
from bigain.runs.results import Run

FOLDS = 5
# Penalty on the squared weights of standardised errors, which would diverge for perfectly separated images.
_RIDGE = 1e-3
_COMPARED = ("difference", "low", "high", "p")


def try_weights(run: Run, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Classify the images of a run with weights over timesteps, and compare with equal weights on the same images.

    Args:
        run: A classification with `keep: null`.
        names: `uniform`; `fitted`, judged on images that it was not fitted to; JSON files.

    Returns:
        Plain values for a file, and lines of text.

    Raises:
        InputError: If classes were evaluated at different timesteps, errors are weighted, or there are no such weights.
    """
    stored, protocol = read_errors(run), run.results["protocol"]
    if not np.isfinite(stored.errors).all() or (stored.timesteps != stored.timesteps[0]).any() or "weights" in protocol:
        raise InputError(
            f"{run.path}: weights need unweighted errors of all classes at the same timesteps; run with keep: null, "
            "timesteps: grid and weights: uniform"
        )
    times, time_index = np.unique(stored.timesteps[0], return_inverse=True)
    noises = [stored.errors[:, :, time_index == i].mean(2, dtype=np.float64) for i in range(len(times))]
    errors, labels, rows, ones = np.stack(noises, 2), stored.label, [], np.ones(len(times))
    uniform = (errors @ ones).argmin(1) == labels
    for name in names:
        if name == "fitted":
            if len(labels) < FOLDS:
                raise InputError(f"{run.path} has {counted(len(labels), 'image')}; fitted weights take {FOLDS}")
            fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
            image_weights = np.stack([fit(errors[fold != k], labels[fold != k]) for k in range(FOLDS)])[fold, :, None]
            weights = fit(errors, labels)
        else:
            weights = ones if name == "uniform" else _read(name)
            if weights.shape != times.shape:
                raise InputError(f"{name} holds {weights.size} weights; expected {len(times)}, one per timestep")
            if not (weights >= 0).all():
                raise InputError(f"{name} holds the weight {weights.min():g}; no weight may be below 0")
            if not weights.any():
                raise InputError(f"all {weights.size} weights of {name} are 0; at least one must be above 0")
            image_weights = weights[:, None]
        pair = Paired.of((errors @ image_weights)[..., 0].argmin(1) == labels, uniform)
        ends = (100 * end for end in difference_interval(pair)[:2])
        compared = dict(zip(_COMPARED, (100 * pair.difference, *ends, mcnemar(pair)), strict=True))
        row = {"weights": name, "accuracy": 100 * (float(uniform.mean()) + pair.difference)}
        row |= dict.fromkeys(_COMPARED) if name == "uniform" else compared
        rows.append({**row, "by_timestep": (weights / weights.mean()).tolist()})
    columns = [*rows[0]][:-1]
    values = [[*(row[name] for name in columns[1:]), *row["by_timestep"]] for row in rows]
    cells = [[name, *("-" if x is None else f"{x:.3g}" for x in row)] for name, row in zip(names, values, strict=True)]
    return {"run": str(run.path), "timesteps": times.tolist(), "weights": rows}, [
        f"{label(run.compressors)}, {run.path}: accuracy with weights over timesteps, its difference to uniform "
        f"weights on the same {len(labels):,} images, in points with its 95 % interval, and the weights, 1 on average. "
        "Fitted weights are judged on images that they were not fitted to; shown are those fitted to all images:",
        indented([*columns, *(f"t={time}" for time in times)], cells),
        "",
    ]


def _read(file: str) -> Floats:
    expected = "--weights must be uniform, fitted or JSON files with a list of one weight per timestep"
    if not Path(file).is_file():
        raise InputError(f"no file {file}; {expected}")
    return np.array(read_json(Path(file), list[float], expected), np.float64)


def fit(errors: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Return the non-negative weights `(t,)`, of mean 1, that predict labels `(n,)` best from errors `(n, k, t)`.

    A convex logistic regression: scores of the classes are minus their weighted errors. 1 if the best weights are 0.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    x = errors - errors.mean(1, keepdims=True)
    scale = np.maximum(x.std((0, 1)), np.finfo(np.float64).tiny)
    x, true = x / scale, np.eye(errors.shape[1])[labels]

    def loss(weights: Floats) -> tuple[float, Floats]:
        logs = log_softmax(-x @ weights, 1)
        slope = np.einsum("nk,nkt->t", true - np.exp(logs), x) / len(x)
        return _RIDGE * weights @ weights - (true * logs).sum() / len(x), slope + 2 * _RIDGE * weights

    start = np.ones(errors.shape[2])
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x / scale
    # All are 0 if no weighted sum tells more than chance.
    return weights / weights.mean() if weights.any() else start
