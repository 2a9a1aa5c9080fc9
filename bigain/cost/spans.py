"""Seconds of nested spans of work, by events on a GPU and by the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CLOCKS = {"cuda": "CUDA events", "cpu": "wall clock"}


class Spans:
    """Measures spans of work on one device. The time of an inner span does not count for the outer one.

    Does not wait for a GPU: a span begins and ends with an event in the device's queue, and `settle` reads them.

    Attributes:
        clock: Name of the clock; None on other devices, which are not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.clock = _CLOCKS.get(device.type)
        self._device = device
        # Name, name of the enclosing span, start and end.
        self._finished: list[tuple[str, str | None, Any, Any]] = []
        self._current: str | None = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure a `with` block."""
        outer, start = self._current, self._now()
        self._current = name
        try:
            yield
        finally:
            self._current = outer
            self._finished.append((name, outer, start, self._now()))

    @property
    def ended(self) -> int:
        """Number of spans that have ended since `settle`."""
        return len(self._finished)

    def forget(self, since: int) -> None:
        """Discard all spans that ended after the first `since`."""
        del self._finished[since:]

    def settle(self) -> dict[str, float]:
        """Return seconds by name since the last call; waits for the end of the last span."""
        if self._finished and self._device.type == "cuda":
            self._finished[-1][3].synchronize()
        seconds: dict[str, float] = {}
        for name, outer, start, end in self._finished:
            elapsed = start.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + elapsed
            if outer is not None:
                seconds[outer] = seconds.get(outer, 0.0) - elapsed
        self._finished.clear()
        return seconds

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
