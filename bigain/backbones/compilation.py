"""torch.compile for a denoiser with hooks; compiled code is discarded when hooks change."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from bigain.backbones.cuda_graphs import Graphs, forget_graphs
from bigain.backbones.sites import layout_of

Compile = Literal["none", "whole", "regional"]


def compile_denoiser(denoiser: nn.Module, how: Compile, **options: Any) -> None:
    """Let torch compile a network at its next forward, in place.

    Install compressors first: their hooks are compiled as well.

    Args:
        denoiser: A network whose transformer blocks are known.
        how: `whole`: the network as one graph, the fastest and the longest to compile; `regional`: each transformer
            block by itself, so that blocks of equal shape share their code; `none`: nothing.
        options: Options of `torch.compile`.
    """
    if how == "none":
        return
    forget_compiled()
    config: Any = torch._dynamo.config
    # Every hooked block compiles to its own code. Beyond torch's limit of 8 the rest would run uncompiled.
    config.recompile_limit = max(config.recompile_limit, 64)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)
    modules = [denoiser] if how == "whole" else [site.block for site in layout_of(denoiser).sites]
    for module in modules:
        module.compile(**options)


def compiled(network: nn.Module) -> Compile:
    """Return how a network is compiled: as a whole, in parts, or not at all."""
    if _is_compiled(network):
        return "whole"
    return "regional" if any(map(_is_compiled, network.modules())) else "none"


def forget_compiled() -> None:
    """Discard compiled code and graphs, which do not notice added or removed hooks; they are made again when needed.

    torch can only discard everything, and networks compiled by other code cannot be recognised. From then on
    compiled code also checks the hooks of the network it runs; otherwise it would be reused for every network of the
    same sizes.
    """
    config: Any = torch._dynamo.config
    config.skip_nnmodule_hook_guards = False
    torch.compiler.reset()
    forget_graphs()


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or not isinstance(
        getattr(module, "_compiled_call_impl", None), (Graphs, type(None))
    )
