"""Weights over timesteps, tried on the stored errors of a run: given ones, and ones fitted to other images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from bigain.runs.results import Run

FOLDS = 5
# Of the squared weights of standardised errors: those of perfectly separated images would grow for ever.
_RIDGE = 1e-3


def try_weights(
    run: Run, names: Sequence[str], snr: Callable[[Run, npt.NDArray[np.int64]], Floats]
) -> tuple[dict[str, Any], list[str]]:
    """Classify the images of a run with weights over timesteps, and compare with equal weights on the same images.

    Args:
        run: A classification with `keep: null`.
        names: `uniform`, `snr`, `fitted`, or files with a list of one weight per timestep. Fitted weights are judged on
            images that they were not fitted to, in five folds.
        snr: Returns the signal-to-noise ratios at timesteps of a run.

    Returns:
        Plain values for a file, and lines of text.

    Raises:
        InputError: If not every class was evaluated at the same timesteps, errors are weighted already, or there are no
            such weights.
    """
    stored = read_errors(run)
    if not np.isfinite(stored.errors).all() or (stored.timesteps != stored.timesteps[0]).any():
        raise InputError(f"{run.path}: weights need all classes at the same timesteps; run with keep: null and a grid")
    if "weights" in run.results["protocol"]:
        raise InputError(f"{run.path} stores errors that are weighted already; run with weights: uniform")
    times, place = np.unique(stored.timesteps[0], return_inverse=True)
    noises = [stored.errors[:, :, place == i].mean(2, dtype=np.float64) for i in range(len(times))]
    errors, labels, rows = np.stack(noises, 2), stored.label, []
    uniform = errors.mean(2).argmin(1) == labels
    for name in names:
        of_image = weights = np.ones(len(times))
        if name == "snr":
            of_image = weights = snr(run, times)
        elif name == "fitted":
            fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
            of_image = np.stack([fit(errors[fold != k], labels[fold != k]) for k in range(FOLDS)])[fold, :, None]
            weights = fit(errors, labels)
        elif name != "uniform":
            if not Path(name).is_file():
                raise InputError(f"--weights must be uniform, snr, fitted or JSON files; there is no file {name}")
            of_image = weights = np.array(
                read_json(Path(name), list[float], "give one weight per timestep"), np.float64
            )
            if weights.shape != times.shape or not (weights >= 0).all() or not weights.any():
                raise InputError(f"{name} must be {len(times)} weights of at least 0, not all 0, for {run.path}")
        right = (errors @ of_image).reshape(errors.shape[:2]).argmin(1) == labels
        pair = Paired.of(right, uniform)
        low, high, _ = difference_interval(pair)
        changes = {"difference": 100 * pair.difference, "low": 100 * low, "high": 100 * high, "p": mcnemar(pair)}
        of_times = (weights / weights.mean()).tolist()
        rows.append({"weights": name, "accuracy": 100 * float(right.mean()), **changes, "by_timestep": of_times})
    headers = [*rows[0]][:-1]
    lines = [
        f"{label(run.compressors)}, {run.path}: weights over timesteps, and the difference to uniform ones on the same "
        f"{len(labels):,} images in points, with its 95 % interval; fitted weights are judged on other images:",
        indented(headers, [[row["weights"], *(f"{row[name]:.3g}" for name in headers[1:])] for row in rows]),
        "Weights by timestep, 1 on average; fitted to all images:",
        indented(
            ["weights", *map(str, times)],
            [[row["weights"], *(f"{value:.2g}" for value in row["by_timestep"])] for row in rows],
        ),
    ]
    return {"run": str(run.path), "timesteps": times.tolist(), "weights": rows}, [*lines, ""]


def fit(errors: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Return the non-negative weights `(t,)`, of mean 1, that predict labels `(n,)` best from errors `(n, k, t)`.

    A convex logistic regression: scores of the classes are minus their weighted errors.
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
    return weights / weights.mean()
