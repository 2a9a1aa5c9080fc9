"""Which network of a backbone is running, and who looks on meanwhile, told to whoever times it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

import torch

Network = Literal["denoiser", "encoder", "decoder", "onlooker"]
Watcher = Callable[[Network, int], AbstractContextManager[None]]

_watcher: ContextVar[Watcher | None] = ContextVar("bigain_watcher", default=None)


def running(network: Network, rows: int) -> AbstractContextManager[None]:
    """Mark one forward of a network on so many rows; a VAE is an encoder and a decoder. Costs nothing unwatched.

    An `onlooker` is no network: what it does in the middle of a forward is no work of that forward.
    """
    watcher = _watcher.get()
    # A compiled graph has no clock.
    return nullcontext() if watcher is None or torch.compiler.is_compiling() else watcher(network, rows)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` open and close around every forward of a backbone's networks inside this block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
