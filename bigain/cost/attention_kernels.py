"""Which kernels torch chooses for attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# What torch itself asks which kernel to take; it has no public name.
_choice: Callable[..., int] | None = getattr(torch, "_fused_sdp_choice", None)


@contextmanager
def kernels_seen() -> Iterator[set[str]]:
    """The kernels that torch's attention takes inside this block, filled while it runs.

    One of `flash`, `efficient`, `cudnn`, `math`, ... for every call of `scaled_dot_product_attention`, on the very
    tensors that it gets. Empty where attention is computed some other way. Not for compiled networks, which do not
    make these calls any more.
    """
    mode = _Watch()
    with mode:
        yield mode.seen


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            name = "unknown" if _choice is None else SDPBackend(_choice(*args, **given)).name
            self.seen.add(name.removesuffix("_ATTENTION").lower())
        return func(*args, **given)
