"""What one denoiser forward knows of its rows: timesteps, keys, classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigain.tokens.grid import Grid


@dataclass(frozen=True)
class RowKeys:
    """Identity of the rows of a forward: rows of equal key make equal random choices. Both `(b,)`, int64."""

    keys: Tensor
    classes: Tensor | None = None


_row_keys: ContextVar[RowKeys | None] = ContextVar("bigain_row_keys", default=None)


@contextmanager
def row_keys(keys: Tensor, classes: Tensor | None = None) -> Iterator[None]:
    """Name the rows of the denoiser forwards inside this block.

    Args:
        keys: One per row: (image, trial) in classification, (image, step) in generation. `(b,)`, int64.
        classes: Class of each row, for what depends on it deliberately. `(b,)`, int64.
    """
    token = _row_keys.set(RowKeys(keys, classes))
    try:
        yield
    finally:
        _row_keys.reset(token)


@dataclass
class ForwardContext:
    """State of one denoiser forward; it dies with the forward.

    Attributes:
        latent: Latent size.
        timesteps: Value per row, possibly fractional. `(b,)`, float32.
        keys: Identity per row. `(b,)`, int64.
        classes: Class per row; zeros where nobody said. `(b,)`, int64.
        cache: Whatever a compressor shares between the hooks and sites of this forward.
    """

    latent: Grid
    timesteps: Tensor
    keys: Tensor
    classes: Tensor
    cache: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, latents: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> ForwardContext:
        """Read the arguments of a denoiser call.

        Without `row_keys`, the key of a row is the value of its timestep: an int, a 0-d, a 1-element or a `(b,)`
        tensor of the same value give the same key.
        """
        b = latents.shape[0]
        # The dtype is named because a half-precision Trainer changes torch's default, which rounds a Python float.
        value = torch.as_tensor(timestep, dtype=torch.float32, device=latents.device).reshape(-1).expand(b)
        named = _row_keys.get()
        keys = value.contiguous().view(torch.int32).to(torch.int64) if named is None else named.keys
        classes = class_labels if named is None or named.classes is None else named.classes
        if classes is None:
            classes = torch.zeros(b, dtype=torch.int64, device=latents.device)
        return cls(Grid(*latents.shape[-2:]), value, keys, classes)
