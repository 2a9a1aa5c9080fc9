"""Which precision sensitive arithmetic runs in, whatever surrounds it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off on the device of `x`: it would silently run products and convolutions in half precision."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device has it; MPS does not."""
    return torch.float32 if device.type == "mps" else torch.float64
