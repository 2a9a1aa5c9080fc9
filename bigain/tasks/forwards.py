"""Forwards of equal size, so that the result of a row does not depend on the number of rows."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bigain.errors import InputError, out_of_memory

# Enough to keep a few threads busy; embedded models are not faster with more.
ROWS_ON_CPU = 8

_log = logging.getLogger(__name__)


class Forwards:
    """Splits rows over forwards, and makes the forwards smaller when memory runs out.

    The matrix libraries of a CPU choose a kernel by the number of rows, and kernels round differently. On a CPU every
    forward therefore has the same number of rows, the last one padded with copies: results are equal bit for bit,
    whatever the number of rows. On other devices forwards have the size that was asked for, and the last is smaller.

    Attributes:
        rows: Most rows of a forward.
        equal: Pad the last forward on other devices, too, so that no network is compiled or recorded as a graph again.
    """

    def __init__(self, rows: int | None, name: str, on_cpu: int = ROWS_ON_CPU) -> None:
        """Set the size.

        Args:
            rows: Most rows of a forward; None for all of them, except on a CPU. At least 1.
            name: Name of the setting, for messages.
            on_cpu: Rows of a forward on a CPU, unless `rows` is less.
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
            compute: From row indices `(n,)` int64 on `device`, ascending with repetitions at the end, and from the
                first and the last of them (to read these from the device would synchronise) to `(n, ...)`.
            count: Number of rows, at least 1.
            device: Where rows are computed.

        Returns:
            `(count, ...)`.

        Raises:
            InputError: If memory runs out with a single row.
        """
        outputs: list[Tensor] = []
        start = 0
        while start < count:
            size = self.rows_on(device) or count
            if not (self.equal or device.type == "cpu"):
                size = min(size, count - start)
            stop = min(start + size, count)
            indices = torch.arange(start, start + size, device=device).clamp_(max=stop - 1)
            try:
                outputs.append(compute(indices, start, stop - 1)[: stop - start])
                start = stop
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise InputError(
                        f"memory ran out with {self._name}: 1; use a smaller image_size or a half precision, or free "
                        f"memory: {error}"
                    ) from error
            # After the exception, which holds the tensors of the failed forward.
            self.rows = size // 2
            _log.warning(f"warning: memory ran out; continues with {self._name}: {self.rows} instead of {size}")
            if torch.cuda.is_available():
                # The failed forward left cached blocks of a different size.
                torch.cuda.empty_cache()
        return torch.cat(outputs)

    def rows_on(self, device: torch.device) -> int | None:
        """Return the most rows of a forward on a device; None for all of them."""
        if device.type != "cpu":
            return self.rows
        return self._on_cpu if self.rows is None else min(self._on_cpu, self.rows)
