"""Per-row data of a denoiser forward: timesteps, keys, classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigain.tokens.grid import Grid


@dataclass
class Sharing:
    """Groups of rows of a forward that differ only in their condition.

    Attributes:
        first: One row of each group; a group may be listed twice to keep the number of groups. `(g,)`, int64.
        group: Position in `first` of each row's group. `(b,)`, int64.
        active: Set to false during a forward once something depends on the condition earlier than usual.
    """

    first: Tensor
    group: Tensor
    active: bool = True


class Step(NamedTuple):
    """A step of a sampler: its position, from 0, and its timestep."""

    number: int
    timestep: float


@dataclass(frozen=True)
class RowKeys:
    """Identity of the rows of a forward; rows with equal keys make equal random choices.

    Attributes:
        keys: One per row: (image, trial) in classification, (image, step) in generation. `(b,)`, int64.
        classes: Class of each row, for computations that depend on it deliberately. `(b,)`, int64.
        sharing: Groups of rows that differ only in their condition; their keys must be equal.
        timestep: A timestep, in 0..999, at which compressors do what they do for all of these rows: see
            `Compressor.shared_value`; None if that is the same at all timesteps.
        guidance: In generation, the magnitude of the guidance difference of the step before, the mean over channels;
            None in the first step and without guidance. `(b, h, w)`, float32.
        step: In generation, the step. Forwards of one network with steps 0, 1, 2, ... are of the same rows.
    """

    keys: Tensor
    classes: Tensor | None = None
    sharing: Sharing | None = None
    timestep: int | None = None
    step: Step | None = None
    guidance: Tensor | None = None


_row_keys: ContextVar[RowKeys | None] = ContextVar("bigain_row_keys", default=None)


@contextmanager
def row_keys(
    keys: Tensor,
    classes: Tensor | None = None,
    sharing: Sharing | None = None,
    timestep: int | None = None,
    step: Step | None = None,
    guidance: Tensor | None = None,
) -> Iterator[None]:
    """Set the identity of the rows of denoiser forwards inside this block: see `RowKeys`."""
    token = _row_keys.set(RowKeys(keys, classes, sharing, timestep, step, guidance))
    try:
        yield
    finally:
        _row_keys.reset(token)


def pair_sharing(rows: int, first: int, last: int, size: int, device: torch.device) -> Sharing | None:
    """Group consecutive rows, `size` each, for a forward with the rows `first` to `last`, counted over all groups.

    Rows after `last`, up to the number of `rows`, are copies of it. The number of groups depends only on the number of
    rows, not on where in a group the forward begins, so that the last digits of a row do not depend on its neighbours.
    None if there can be as many groups as rows.
    """
    groups = (rows - 2) // size + 2
    if groups >= rows:
        return None
    begin = first // size
    starts = (torch.arange(groups, device=device) + begin) * size - first
    group = torch.arange(first, first + rows, device=device).clamp_(max=last) // size - begin
    return Sharing(starts.clamp_(0, last - first), group)


def rows_now() -> RowKeys | None:
    """Return the identity set by the innermost `row_keys` block, None outside of one."""
    return _row_keys.get()


@dataclass
class ForwardContext:
    """State of one denoiser forward, discarded when the forward ends.

    Attributes:
        latent: Latent size.
        timesteps: Value per row, possibly fractional. `(b,)`, float32.
        keys: Identity per row. `(b,)`, int64.
        classes: Class per row; zeros if not set. `(b,)`, int64.
        cache: Data that a compressor shares between the hooks and sites of this forward.
        sharing: Groups of rows that differ only in their condition, if set.
        guidance: See `RowKeys`. `(b, h, w)`.
    """

    latent: Grid
    timesteps: Tensor
    keys: Tensor
    classes: Tensor
    cache: dict[Any, Any] = field(default_factory=dict)
    sharing: Sharing | None = None
    guidance: Tensor | None = None

    @classmethod
    def of(
        cls,
        latents: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None,
        latent: Grid | None = None,
        steps: float = 1,
    ) -> ForwardContext:
        """Read the arguments of a denoiser call; `latent` and `steps` are those of a `Layout`.

        Without `row_keys`, the key of a row is the value of its timestep: an int, a 0-d, a 1-element or a `(b,)`
        tensor of the same value give the same key.
        """
        b = latents.shape[0]
        # An explicit dtype: a half-precision Trainer changes torch's default, which would round a Python float.
        value = torch.as_tensor(timestep, dtype=torch.float32, device=latents.device).reshape(-1).expand(b)
        value = value if steps == 1 else value * steps
        rows = rows_now() or RowKeys(value.contiguous().view(torch.int32).to(torch.int64))
        classes = class_labels if rows.classes is None else rows.classes
        if classes is None or classes.is_floating_point():  # embeddings of images
            classes = torch.zeros(b, dtype=torch.int64, device=latents.device)
        latent = latent or Grid(*latents.shape[-2:])
        return cls(latent, value, rows.keys, classes, sharing=rows.sharing, guidance=rows.guidance)

    def of_rows(self, rows: Tensor) -> ForwardContext:
        """Return the context of some rows, with the cache of the whole forward. `(r,)`, int64."""
        guidance = None if self.guidance is None else self.guidance[rows]
        timesteps, keys, classes = self.timesteps[rows], self.keys[rows], self.classes[rows]
        return replace(self, timesteps=timesteps, keys=keys, classes=classes, guidance=guidance)
