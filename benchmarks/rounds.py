"""Rounds in which every candidate runs once, for the benchmarks in this folder."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import torch

from bigain.commands.bench.measure import spread
from bigain.cost.spans import Spans

LONG_ENOUGH, MOST_CALLS = 0.1, 100


def rounds(
    tasks: Mapping[str, Callable[[], object]], repetitions: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Return the seconds of each task in each round, in which all run in changing order; the first round warms up.

    A short task runs several times in a row, and its mean counts.
    """
    spans, seconds = Spans(device or torch.device("cpu")), {name: list[float]() for name in tasks}
    calls = dict.fromkeys(tasks, 1)
    for number in range(repetitions + 1):
        for name in random.Random(number).sample(list(tasks), len(tasks)):
            with spans.span(name):
                for _ in range(calls[name]):
                    tasks[name]()
        totals = spans.settle()
        for name in tasks:
            if number:
                seconds[name].append(totals[name] / calls[name])
            else:
                calls[name] = min(MOST_CALLS, math.ceil(LONG_ENOUGH / totals[name]))
    return seconds


def spread_text(values: Sequence[float], digits: int, factor: float = 1) -> str:
    """Return `1.25 (1.10 to 1.40)`: the median, the lowest and the highest value."""
    summary = spread(values, factor)
    return f"{summary['median']:.{digits}f} ({summary['low']:.{digits}f} to {summary['high']:.{digits}f})"
