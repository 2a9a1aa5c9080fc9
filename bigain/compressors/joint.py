"""Attentions over text and image: sequences that hold both, and rotary embeddings in hooks.

Such an attention normalises queries and keys, joins those of text and image, and rotates them with one table for all
rows of the batch. Merged rows keep different tokens, so hooks on the norms rotate each row with its own table, and
the attention is called without one. Rotations act on each token, so rotating before joining gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from bigain.backbones.sites import Site
from bigain.compressors.hooks import ContextGetter
from bigain.errors import InputError

ROTARY = "image_rotary_emb"

# Cosines and sines. `(n, d)` or, by row, `(b, n, d)` or `(1, n, d)`, float32.
Table = tuple[Tensor, Tensor]


def join(text: Tensor | None, image: Tensor) -> Tensor:
    """Undo `Site.split`."""
    return image if text is None else torch.cat((text, image), dim=1)


def check_processor(attention: nn.Module, site: Site) -> None:
    """Raise an InputError unless an attention has the processor that hooks inside it rely on."""
    processor = type(getattr(attention, "processor", None))
    if site.processor is not None and processor is not site.processor:
        raise InputError(
            f"{site.name} computes attention with {processor.__name__}; hooks inside it are known to work with "
            f"{site.processor.__name__} only: call set_attn_processor({site.processor.__name__}()) on the network"
        )


def rotate_after_norms(attention: nn.Module, site: Site, context: ContextGetter, key: Any, undo: ExitStack) -> None:
    """Rotate queries and keys with the tables that `take_rotary` keeps in the cache of a forward."""
    check_processor(attention, site)

    def rotate_with(table: int) -> Callable[..., Tensor | None]:
        def rotate(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            tables = context().cache.get(key)
            return None if tables is None else _rotate(output, tables[table])

        return rotate

    for name, table in (("norm_added_q", 0), ("norm_added_k", 0), ("norm_q", 1), ("norm_k", 1)):
        if (norm := getattr(attention, name, None)) is not None:
            undo.callback(norm.register_forward_hook(rotate_with(table)).remove)


def take_rotary(
    kwargs: dict[str, Any], site: Site, n: int, rows: Callable[[Table], Table]
) -> tuple[dict[str, Any], tuple[Table, Table] | None]:
    """Take the rotary embedding out of the arguments of an attention.

    Args:
        kwargs: The arguments.
        site: The site.
        n: Image tokens.
        rows: Maps the table of all image tokens to that of the remaining ones.

    Returns:
        The other arguments, and the tables for the norms of text and of the attention's own input; None without one.
    """
    if (table := kwargs.get(ROTARY)) is None:
        return kwargs, None
    cos, sin = table
    text_count = cos.shape[0] - n
    text_table, input_table = (cos[:text_count], sin[:text_count]), rows((cos[text_count:], sin[text_count:]))
    if site.text_first:
        b = input_table[0].shape[:-2]
        pairs = zip(text_table, input_table, strict=True)
        cos, sin = (torch.cat((text.expand(*b, -1, -1), image), dim=-2) for text, image in pairs)
        input_table = (cos, sin)
    return {**kwargs, ROTARY: None}, (text_table, input_table)


def _rotate(x: Tensor, table: Table) -> Tensor:
    """Apply a rotary embedding. `(b, n, heads, d)` -> the same shape and dtype."""
    cos, sin = table
    if x.shape[1] == 0:
        # No text. The library's function cannot reshape it.
        return x
    if cos.ndim == 2:
        return apply_rotary_emb(x, table, sequence_dim=1)
    # The library's function takes one table for all rows, so the rows are joined to one.
    cos, sin = (part.expand(len(x), -1, -1).flatten(0, 1) for part in table)
    return apply_rotary_emb(x.flatten(0, 1)[None], (cos, sin), sequence_dim=1).view_as(x)
