"""`--match`: the ratio or factor at which a method reaches a given reduction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial

import bigain.compressors
from bigain.commands.flops.model import CountedModel
from bigain.compressors import ABM, CAM, IEKVD, LGTM, AveragePool, Compressor, FrequencyKV, SiTo, ToDo, ToMe
from bigain.cost.flops import reduction_percent
from bigain.errors import InputError

# Ratios are searched in thousandths.
_STEPS = 1000
# Where to begin; any value that the constructors take.
_START = {"ratio": 0.5, "factor": 2}


@dataclass(frozen=True)
class Match:
    """What a method needs for a reduction.

    Attributes:
        method: Class name.
        setting: `ratio`, `tau` or `factor`.
        value: The smallest ratio, in thousandths, that reaches the reduction, or the largest there is; the factor
            nearest to it.
        gflops: With this value.
        reduction_percent: With this value.
        reached: Whether any value reaches the reduction.
    """

    method: str
    setting: str
    value: float
    gflops: float
    reduction_percent: float
    reached: bool


def every_method() -> list[Compressor]:
    """One compressor of each method, with a value to begin with."""
    merging: list[Compressor] = [ToMe(ratio=0.5), LGTM(ratio=0.5), CAM(LGTM(ratio=0.5)), ABM(ratio=0.5), SiTo()]
    kv: list[Compressor] = [ToDo(factor=2), AveragePool(factor=2), IEKVD(factor=2), FrequencyKV(ratio=0.5, keep="low")]
    return merging + kv


def starting_value(args: Sequence[str]) -> Iterator[str]:
    """Options for a value to begin with where the compressor's class requires one and none is given."""
    args = [part for arg in args for part in arg.split("=", 1)]
    prefix, options = "--compressor", dict(zip(args, [*args[1:], ""], strict=True))
    while (name := options.get(prefix)) is not None:
        kind = getattr(bigain.compressors, name.rpartition(".")[2], None)
        parameters = getattr(kind, "__init__", kind).__annotations__ if kind else {}
        for setting, value in _START.items():
            if setting in parameters and not {f"{prefix}.{setting}", f"{prefix}.tau"} & set(args):
                yield f"{prefix}.{setting}={value}"
        prefix += ".inner"


def match(model: CountedModel, compressor: Compressor, percent: float) -> Match:
    """Find the setting of one method.

    Args:
        model: What is counted.
        compressor: The method with all of its other settings.
        percent: Reduction to reach, in (0, 100).

    Raises:
        InputError: If the compressor has neither ratio nor factor, or cannot work on the model.
    """
    setting = _setting(compressor)
    low, high, unit = _range(model, compressor, setting)
    reductions: dict[int, float] = {}

    def reduction(step: int) -> float:
        if step not in reductions:
            changed = _changed(compressor, setting, step if unit == 1 else step / unit)
            try:
                reductions[step] = reduction_percent(model.count(changed), model.baseline)
            except InputError:
                # A small value may remove nothing at all; what is wrong with the largest is wrong with all.
                if step == high:
                    raise
                return -math.inf
        return reductions[step]

    found = _smallest(reduction, low, high, percent, reductions)
    reached = reduction(high) >= percent
    if unit == 1 and reached:
        found = min((step for step in (found, found - 1) if step >= low), key=lambda s: abs(reduction(s) - percent))
    reduced = reduction(found)
    gflops = model.baseline.total / 1e9 * (1 - reduced / 100)
    return Match(type(compressor).__name__, setting, found if unit == 1 else found / unit, gflops, reduced, reached)


def _setting(compressor: Compressor) -> str:
    settings = _innermost(compressor).settings()
    for name in ("tau", "ratio", "factor"):
        if settings.get(name) is not None:
            return name
    raise InputError(f"{type(compressor).__name__} has neither ratio nor factor to search for")


def _innermost(compressor: Compressor) -> Compressor:
    inner = getattr(compressor, "inner", None)
    return compressor if inner is None else _innermost(inner)


def _changed(compressor: Compressor, setting: str, value: float) -> Compressor:
    """The same method with another value."""
    settings: dict[str, Any] = compressor.settings()
    if "inner" in settings:
        return type(compressor)(**{**settings, "inner": _changed(settings["inner"], setting, value)})
    return type(compressor)(**{**settings, setting: value})


def _range(model: CountedModel, compressor: Compressor, setting: str) -> tuple[int, int, int]:
    """Smallest and largest step, and how many make one."""
    grids = [site.grid(model.grid) for site in compressor.sites_of(model.backbone.denoiser)]
    if setting == "factor":
        return 2, min(min(grid) for grid in grids), 1
    if setting == "tau":
        return 1, _STEPS, _STEPS
    cell = getattr(_innermost(compressor), "cell", None)
    # A token of each cell stays, or of the whole sequence.
    largest = 1 - 1 / (cell.area if cell is not None else min(grid.n for grid in grids))
    return 1, math.floor(_STEPS * largest), _STEPS


def _smallest(reduction: Callable[[int], float], low: int, high: int, percent: float, known: dict[int, float]) -> int:
    """The smallest step whose reduction reaches `percent`, or `high` if none does.

    Reductions rise with the step, of mergers as a parabola but for rounding: a curve through what is known finds it
    in few counts, and every sixth turn halves the interval whatever the curve says.
    """
    if reduction(high) < percent:
        return high
    below, turn = low - 1, 0
    while high - below > 1:
        turn += 1
        # Most of what factors change, the smallest ones change.
        half = math.isqrt(below * high) if low > 1 else (below + high) // 2
        guess = half if turn % 6 == 0 else _on_a_curve(known, percent, below, high, half)
        middle = min(max(guess, below + 1), high - 1)
        if reduction(middle) >= percent:
            high = middle
        else:
            below = middle
    return high


def _on_a_curve(known: dict[int, float], percent: float, below: int, high: int, otherwise: int) -> int:
    """The step between two others at which a curve through the three nearest known points takes a value."""
    points = sorted(known.items(), key=lambda point: abs(point[1] - percent))[:3]
    if len(points) < 2:
        return otherwise
    steps, values = zip(*points, strict=True)
    roots = np.atleast_1d((Polynomial.fit(steps, values, len(points) - 1) - percent).roots())
    between = [float(root.real) for root in roots if abs(root.imag) < 1e-6 and below < root.real <= high]
    return math.ceil(min(between)) if between else otherwise
