"""Fixed precision for sensitive arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_FLOOR = 1e-12


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast on the device of `x`; it would run products and convolutions in half precision."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def unit_tokens(x: Tensor) -> Tensor:
    """Scale tokens to unit length in float32, with norms of at least 1e-12. `(..., c)`."""
    return F.normalize(x.float(), dim=-1, eps=NORM_FLOOR)


def products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply batched matrices of any float dtype in float32. `(b, n, c)`, `(b, c, m)` -> `(b, n, m)`.

    A product of two half-precision numbers is exact in float32. If the device can sum such products in float32, its
    half-precision units are used: the result is as accurate as with converted factors, and much faster.

    Args:
        a: First factor.
        b: Second factor, of the same dtype.
        out: Memory for the result. `(b, n, m)`, float32.
    """
    if a.dtype == torch.float32:
        return torch.bmm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32, out=out)
    with _bfloat16_units(a):
        return torch.bmm(a.float(), b.float(), out=out)


@contextmanager
def _bfloat16_units(x: Tensor) -> Iterator[None]:
    """Let a CPU multiply float32 matrices with bfloat16 values in its bfloat16 units; nothing is rounded."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    # A compiled graph cannot change a global setting.
    if setting is None or x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        yield
        return
    previous = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = previous
