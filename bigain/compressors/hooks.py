"""The hooks of compressors, and what they know about the forward that they run in."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Layout
from bigain.errors import InputError

ContextGetter = Callable[[], ForwardContext]


def watch_forward(denoiser: nn.Module, layout: Layout, undo: ExitStack) -> ContextGetter:
    """Create a context for every forward of a network until `undo` closes; the result returns it inside a forward."""
    signature = inspect.signature(denoiser.forward)
    # A network may run in several threads at once.
    current = threading.local()

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not denoiser:
            raise InputError(
                f"this {layout.model} is a copy made while a compressor was installed; copy the network before, and "
                "install a compressor on the copy"
            )
        if torch.is_grad_enabled() and getattr(module, "is_gradient_checkpointing", False):
            raise InputError(
                f"{layout.model} uses gradient checkpointing, which runs compressed blocks a second time during the "
                "backward pass; call disable_gradient_checkpointing(), or use torch.no_grad()"
            )
        arguments = signature.bind(*args, **kwargs).arguments
        if arguments.get("timestep") is None:
            raise InputError(f"{layout.model} was called without a timestep, which a compressor needs")
        latent = None if layout.latent_of is None else layout.latent_of(arguments)
        current.context = ForwardContext.of(
            arguments[layout.latents], arguments["timestep"], arguments.get("class_labels"), latent, layout.steps
        )

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current.context = None

    def context() -> ForwardContext:
        forward: ForwardContext | None = getattr(current, "context", None)
        if forward is None:
            raise RuntimeError(f"a hooked block of {layout.model} ran outside a forward of the whole network")
        return forward

    undo.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
    undo.callback(denoiser.register_forward_hook(end, always_call=True).remove)
    return context
