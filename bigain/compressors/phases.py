"""Which part of a compressor's own work is running, told to whoever counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

Phase = Literal["matching", "scoring", "merging"]
Observer = Callable[[Phase], AbstractContextManager[None]]

_observers: list[Observer] = []


def phase(name: Phase) -> AbstractContextManager[None]:
    """Mark what runs inside: `matching` is deciding which tokens to merge or keep, `scoring` giving them a score.

    `merging` is applying what was decided, on the way in and on the way out. Downsampling of keys is `matching`.
    Phases nest, the innermost counts. Costs nothing while nobody observes.
    """
    return _observers[-1](name) if _observers else nullcontext()


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let `observer` open and close around every phase of the forwards inside this block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.pop()
