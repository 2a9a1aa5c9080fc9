"""Which kernels torch chooses for attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# The function that torch chooses a kernel with; it has no public name.
_choose_kernel: Callable[..., int] | None = getattr(torch, "_fused_sdp_choice", None)


@contextmanager
def kernels_seen() -> Iterator[set[str]]:
    """Collect the names of the kernels that `scaled_dot_product_attention` uses inside this block.

    The set grows with each call: `flash`, `efficient`, `cudnn`, `math`, ... It stays empty if attention is computed
    differently or in a compiled network, which does not make these calls.
    """
    with _Recorder() as recorder:
        yield recorder.seen


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            name = "unknown" if _choose_kernel is None else SDPBackend(_choose_kernel(*args, **kwargs)).name
            self.seen.add(name.removesuffix("_ATTENTION").lower())
        return func(*args, **kwargs)
