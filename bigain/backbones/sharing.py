"""Compute once what rows of a forward have in common: the part of a U-Net before the first cross-attention.

Rows of one (image, trial) differ only in their class, as do the two rows of a guided pair. Everything before the
first cross-attention is equal for them: 5 % of SD 2.0. Its modules are hooked to run on one row of each group, and
their output is copied to the others; keys and values of the prompts are computed once per run and looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from bigain.backbones.cuda_graphs import forget_graphs
from bigain.backbones.forward import Sharing, rows_now
from bigain.backbones.sites import Layout, layout_of

# Largest size of cached keys and values of prompts, in bytes. 1,000 classes of SD 2.0 in half precision take 3.8e9.
_MAX_CACHE_BYTES = 4 * 2**30


def share(denoiser: nn.Module, conditions: Tensor | None = None) -> ExitStack:
    """Hook a network to compute shared work once per group of rows that `row_keys` declares.

    Install compressors first: their hooks on the shared attention see all rows. With the conditions of all classes, if
    rows have classes, keys and values of prompts are cached as well. Closing the result removes the hooks.
    """
    layout = layout_of(denoiser)
    with ExitStack() as undo:
        for module in layout.prefix:
            undo.callback(module.register_forward_pre_hook(_select, with_kwargs=True).remove)
            # The output has all rows again before a compressor restores it.
            undo.callback(module.register_forward_hook(_expand, prepend=True).remove)
        if conditions is not None:
            _cache_prompts(layout, conditions, next(denoiser.parameters()).dtype, undo)
        undo.callback(forget_graphs)
        forget_graphs()
        return undo.pop_all()


def _select(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if (sharing := _active_sharing()) is None:
        return None

    def select(value: Any) -> Any:
        has_all_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(sharing.group)
        return value.index_select(0, sharing.first) if has_all_rows else value

    return tuple(map(select, args)), {name: select(value) for name, value in kwargs.items()}


def _expand(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    sharing = _active_sharing()
    return None if sharing is None else output.index_select(0, sharing.group)


def _active_sharing() -> Sharing | None:
    rows = rows_now()
    return None if rows is None or rows.sharing is None or not rows.sharing.active else rows.sharing


def _cache_prompts(layout: Layout, conditions: Tensor, dtype: torch.dtype, undo: ExitStack) -> None:
    """Look up keys and values of the conditions of all classes, `(k, tokens, d)`, in forwards whose rows have classes.

    The first forward computes them, in its precision. If they are too large, every forward computes its own.
    """
    layers = tuple(_prompt_layers(layout)) if conditions.ndim == 3 else ()
    size = conditions.shape[:2].numel() * dtype.itemsize * sum(layer.out_features for layer in layers)
    if size > _MAX_CACHE_BYTES:
        return
    cached: dict[nn.Module, Tensor] = {}

    def skip(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        # A hook cannot stop a module from running, but it can pass it an empty batch.
        return None if _row_classes() is None else (args[0][:0],)

    def look_up(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        if (classes := _row_classes()) is None:
            return None
        if module not in cached:
            cached[module] = module.forward(conditions.to(args[0].dtype))
        return cached[module].index_select(0, classes)

    for layer in layers:
        undo.callback(layer.register_forward_pre_hook(skip).remove)
        undo.callback(layer.register_forward_hook(look_up).remove)
    undo.callback(cached.clear)


def _row_classes() -> Tensor | None:
    rows = rows_now()
    return None if rows is None else rows.classes


def _prompt_layers(layout: Layout) -> Iterable[nn.Linear]:
    for site in layout.sites:
        attention = getattr(site.block, "attn2", None)
        # Custom processors may call these layers with different inputs.
        if not isinstance(attention, Attention) or type(attention.processor) not in (AttnProcessor, AttnProcessor2_0):
            continue
        if attention.norm_cross or getattr(attention, "fused_projections", False):
            continue
        for layer in (attention.to_k, attention.to_v):
            # Existing hooks, such as adapters, would no longer see the prompts.
            if type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
                yield layer
