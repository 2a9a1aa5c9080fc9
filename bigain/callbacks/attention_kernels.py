"""Which kernels torch chooses for attention, and how much of a network is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Compiled = Literal["none", "regional", "whole"]

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


def compiled(network: nn.Module) -> Compiled:
    """Whether torch compiles a network as a whole, parts of it, or nothing."""
    if _is_compiled(network):
        return "whole"
    return "regional" if any(map(_is_compiled, network.modules())) else "none"


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
