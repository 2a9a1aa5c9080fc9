"""Seconds of nested spans of work, by events on a GPU and by the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CLOCKS = {"cuda": "CUDA events", "cpu": "wall clock"}


class Spans:
    """Measures spans of work on one device; a span counts without those inside it.

    A GPU is not waited for: a span begins and ends with an event in the device's queue, and `settle` reads them.

    Attributes:
        clock: What measures; None on a device that has no clock here, where nothing may be measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.clock = _CLOCKS.get(device.type)
        self._device = device
        # Name, name of the span around it, start and end.
        self._done: list[tuple[str, str | None, Any, Any]] = []
        self._open: str | None = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure what runs inside. Nothing is kept of a span in which an exception was raised."""
        outer, first, start = self._open, len(self._done), self._mark()
        self._open = name
        try:
            yield
        except BaseException:
            del self._done[first:]
            raise
        finally:
            self._open = outer
        self._done.append((name, outer, start, self._mark()))

    @property
    def ended(self) -> int:
        """How many spans have ended since `settle`, for `forget`."""
        return len(self._done)

    def forget(self, since: int) -> None:
        """Keep nothing of the spans that ended after so many, one of which was around the others."""
        del self._done[since:]

    def settle(self) -> dict[str, float]:
        """Seconds by name since the last time; waits for the end of the last span."""
        if self._done and self._device.type == "cuda":
            self._done[-1][3].synchronize()
        seconds: dict[str, float] = {}
        for name, outer, start, end in self._done:
            taken = start.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + taken
            if outer is not None:
                seconds[outer] = seconds.get(outer, 0.0) - taken
        self._done.clear()
        return seconds

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
