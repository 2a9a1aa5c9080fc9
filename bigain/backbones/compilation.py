"""torch.compile for a denoiser with hooks: compiled late, and forgotten when hooks come or go."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from bigain.backbones.sites import layout_of
from bigain.errors import check_choice

Compile = Literal["none", "whole", "regional"]
WAYS: tuple[Compile, ...] = ("none", "whole", "regional")

# A block with hooks is code of its own at every site. With torch's limit of 8 the rest would run uncompiled.
_LIMITS = {"recompile_limit": 64, "accumulated_recompile_limit": 1024}


def check_compile(how: Compile) -> Compile:
    """Validate a way of compiling.

    Raises:
        InputError: If there is no such way.
    """
    check_choice("compile", how, WAYS)
    return how


def compile_denoiser(denoiser: nn.Module, how: Compile, **options: Any) -> None:
    """Let torch compile a network at its next forward, in place.

    Install compressors before: hooks belong to what is compiled.

    Args:
        denoiser: A network whose transformer blocks are known.
        how: `whole`: the network as one graph, the fastest and the longest to compile; `regional`: each transformer
            block by itself, so that blocks of equal shape share their code; `none`: nothing.
        options: Of `torch.compile`.
    """
    if how == "none":
        return
    forget_compiled()
    config: Any = torch._dynamo.config
    for name, least in _LIMITS.items():
        setattr(config, name, max(getattr(config, name), least))
    parts = [denoiser] if how == "whole" else [site.block for site in layout_of(denoiser).sites]
    for part in parts:
        part.compile(**options)


def compiled(network: nn.Module) -> Compile:
    """Whether torch compiles a network as a whole, parts of it, or nothing."""
    if _is_compiled(network):
        return "whole"
    return "regional" if any(map(_is_compiled, network.modules())) else "none"


def forget_compiled() -> None:
    """Have everything compiled anew at its next forward: code that exists knows nothing of hooks that come or go.

    A network may have been compiled from outside, which leaves no mark on it, and torch can only forget everything.
    From here on compiled code also looks at the hooks of the network it runs: otherwise it would be taken for every
    other network of the same sizes.
    """
    config: Any = torch._dynamo.config
    config.skip_nnmodule_hook_guards = False
    torch.compiler.reset()


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
