"""Forwards of equal size: what one row computes must not depend on how many others there are."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bigain.errors import InputError

# Enough to keep a few threads busy; embedded models are no faster with more.
ROWS_ON_CPU = 8

_log = logging.getLogger(__name__)


class Forwards:
    """Splits rows over forwards, and takes fewer at a time once memory has run out.

    A CPU's matrix libraries choose another kernel for another number of rows, and round differently. There every
    forward takes the same number, a smaller rest being filled up with copies: results are equal bit for bit, however
    many rows there are. On other devices forwards are as large as is asked for, and a rest is as small as it is.

    Attributes:
        rows: How many a forward takes at most.
        equal: Fill up the rest on other devices, too: a compiled network would be compiled anew for it.
    """

    def __init__(self, rows: int | None, name: str, on_cpu: int = ROWS_ON_CPU) -> None:
        """Set the size.

        Args:
            rows: How many a forward takes at most; None takes all but on a CPU.
            name: The setting's name, for messages.
            on_cpu: How many a forward takes on a CPU, unless `rows` is less.

        Raises:
            InputError: If `rows` is not positive.
        """
        if rows is not None and rows < 1:
            raise InputError(f"{name} must be at least 1, not {rows}")
        self.rows = rows
        self.equal = False
        self._name = name
        self._on_cpu = on_cpu

    def run(self, compute: Callable[[Tensor, int, int], Tensor], count: int, device: torch.device) -> Tensor:
        """Compute `count` rows.

        Args:
            compute: Takes row numbers, ascending with repetitions at the end, on `device`, `(n,)` int64, and the first
                and the last of them, which to read off the device would wait for it; gives `(n, ...)`.
            count: How many rows there are, at least 1.
            device: Where rows are computed.

        Returns:
            `(count, ...)`.

        Raises:
            InputError: If memory runs out with a single row.
        """
        parts: list[Tensor] = []
        start = 0
        while start < count:
            size = self._size(count, device)
            stop = min(start + size, count)
            end = start + size if self.equal or device.type == "cpu" else stop
            part = self._attempt(compute, torch.arange(start, end, device=device).clamp_(max=stop - 1), start, stop - 1)
            if part is None:
                self._halve(size)
                continue
            parts.append(part[: stop - start])
            start = stop
        return torch.cat(parts)

    def _attempt(
        self, compute: Callable[[Tensor, int, int], Tensor], rows: Tensor, first: int, last: int
    ) -> Tensor | None:
        """Rows of one forward; None if memory ran out, with everything that the forward held let go."""
        try:
            return compute(rows, first, last)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if len(rows) == 1:
                raise InputError(
                    f"memory ran out with {self._name}: 1; use a smaller image_size or a half precision, or free "
                    f"memory: {error}"
                ) from error
            return None

    def _size(self, count: int, device: torch.device) -> int:
        if device.type != "cpu":
            if self.rows is None:
                return count
            return self.rows if self.equal else min(self.rows, count)
        return self._on_cpu if self.rows is None else min(self._on_cpu, self.rows)

    def _halve(self, size: int) -> None:
        self.rows = size // 2
        _log.warning(f"warning: memory ran out; goes on with {self._name}: {self.rows} instead of {size}")
        if torch.cuda.is_available():
            # What the failed forward held in pieces of another size.
            torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    # On a CPU, and where a library of the GPU asks for memory itself, it is a plain RuntimeError.
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
