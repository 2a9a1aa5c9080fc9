"""What one denoiser forward knows of its rows: timesteps, keys, classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bigain.tokens.grid import Grid


@dataclass
class Sharing:
    """Rows of a forward that differ in their condition alone.

    Attributes:
        first: A row of each group; groups may be named twice, to keep their number. `(g,)`, int64.
        group: Position in `first` of each row's group. `(b,)`, int64.
        active: Becomes false in a forward in which something depends on the condition earlier than usual.
    """

    first: Tensor
    group: Tensor
    active: bool = True


@dataclass(frozen=True)
class RowKeys:
    """Identity of the rows of a forward: rows of equal key make equal random choices. Both `(b,)`, int64."""

    keys: Tensor
    classes: Tensor | None = None
    sharing: Sharing | None = None


_row_keys: ContextVar[RowKeys | None] = ContextVar("bigain_row_keys", default=None)


@contextmanager
def row_keys(keys: Tensor, classes: Tensor | None = None, sharing: Sharing | None = None) -> Iterator[None]:
    """Name the rows of the denoiser forwards inside this block.

    Args:
        keys: One per row: (image, trial) in classification, (image, step) in generation. `(b,)`, int64.
        classes: Class of each row, for what depends on it deliberately. `(b,)`, int64.
        sharing: Groups of rows that differ in their condition alone; their keys have to be equal.
    """
    token = _row_keys.set(RowKeys(keys, classes, sharing))
    try:
        yield
    finally:
        _row_keys.reset(token)


def pair_sharing(rows: int, first: int, last: int, size: int, device: torch.device) -> Sharing | None:
    """Groups of consecutive rows, `size` each, of which a forward holds the rows `first` to `last`.

    How many groups are computed depends on the numbers of rows alone, not on where in a group the forward begins: what
    a row computes shall not change its last digits with its neighbours.

    Args:
        rows: Rows of the forward; those behind the last are copies of it.
        first: Number of its first row, counted through all groups.
        last: Number of its last row.
        size: Rows per group.
        device: Where the rows are.

    Returns:
        None if there may be as many groups as rows.
    """
    groups = (rows - 2) // size + 2
    if groups >= rows:
        return None
    begin = first // size
    starts = (torch.arange(groups, device=device) + begin) * size - first
    group = torch.arange(first, first + rows, device=device).clamp_(max=last) // size - begin
    return Sharing(starts.clamp_(0, last - first), group)


def rows_now() -> RowKeys | None:
    """What the innermost `row_keys` block says, None outside of one."""
    return _row_keys.get()


@dataclass
class ForwardContext:
    """State of one denoiser forward; it dies with the forward.

    Attributes:
        latent: Latent size.
        timesteps: Value per row, possibly fractional. `(b,)`, float32.
        keys: Identity per row. `(b,)`, int64.
        classes: Class per row; zeros where nobody said. `(b,)`, int64.
        cache: Whatever a compressor shares between the hooks and sites of this forward.
        sharing: Rows that differ in their condition alone, if somebody said which.
    """

    latent: Grid
    timesteps: Tensor
    keys: Tensor
    classes: Tensor
    cache: dict[Any, Any] = field(default_factory=dict)
    sharing: Sharing | None = None

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
        sharing = None if named is None else named.sharing
        return cls(Grid(*latents.shape[-2:]), value, keys, classes, sharing=sharing)

    def of_rows(self, rows: Tensor) -> ForwardContext:
        """What is known of some of the rows; the cache is that of the forward. `(r,)`, int64."""
        return replace(self, timesteps=self.timesteps[rows], keys=self.keys[rows], classes=self.classes[rows])
