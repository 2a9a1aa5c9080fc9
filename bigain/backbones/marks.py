"""Marks around the parts of a forward, for timing and for counting FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, get_args

import torch

Phase = Literal["matching", "scoring", "merging"]
Network = Literal["denoiser", "encoder", "decoder"]
Mark = Phase | Network | Literal["onlooker"]
Listener = Callable[[Mark, int], AbstractContextManager[None]]

PHASES: tuple[Phase, ...] = get_args(Phase)

_listener: ContextVar[Listener | None] = ContextVar("bigain_listener", default=None)


def mark(name: Mark, rows: int = 0) -> AbstractContextManager[None]:
    """Mark the work inside a `with` block. Costs nothing while nobody listens.

    Args:
        name: A network (`denoiser`, `encoder`, `decoder`); a phase of a compressor: `matching` decides which tokens to
            merge or keep and includes the downsampling of keys, `scoring` rates tokens, `merging` merges and unmerges;
            or `onlooker`, which is not part of the forward. Marks nest and the innermost one counts.
        rows: Rows of the forward, for networks and onlookers.
    """
    # Compiled code cannot be timed from inside.
    listener = None if torch.compiler.is_compiling() else _listener.get()
    return nullcontext() if listener is None else listener(name, rows)


@contextmanager
def marks_reported_to(listener: Listener) -> Iterator[None]:
    """Call `listener(name, rows)` for every mark in this block and enter the context manager that it returns."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
