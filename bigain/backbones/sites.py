"""The transformer blocks of a denoiser, where compressors act, found from its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from bigain.backbones.loading import UNSUPPORTED
from bigain.errors import InputError
from bigain.tokens.grid import Grid

Part = Literal["down", "mid", "up"]
Metric = Literal["block_input", "attn_input"]
Module = Literal["self_attn", "cross_attn", "mlp"]


@dataclass(frozen=True)
class Site:
    """One transformer block.

    Attributes:
        name: Module path inside the denoiser.
        index: Position in execution order, from 0.
        part: U-Net part; None for a transformer without resolution levels.
        stride: Downsampling relative to the first level: 1, 2, 4, ...
        block: The block, a diffusers `BasicTransformerBlock` or one of another network's layout.
        patch: Latent pixels per token and side at stride 1.
        unconditional: Whether its input is independent of the condition.
        self_attn: Attributes of the block that are attentions over image tokens; those that are None do not count.
        cross_attn: Attributes of attentions to the text alone.
        mlp: Attributes of MLPs on image tokens.
        attn_input: Attribute of the module that is called first with the input of the self-attention; None if that is
            the attention itself.
        text_first: Whether these modules take text tokens and then image tokens in one sequence.
        processor: Class of attention processor that hooks inside the self-attentions are written for; None if
            compressors need no such hooks.
        token_dim: Dimension of tokens where that processor normalises queries and keys, of four.
    """

    name: str
    index: int
    part: Part | None
    stride: int
    block: nn.Module
    patch: int = 1
    unconditional: bool = False
    self_attn: tuple[str, ...] = ("attn1",)
    cross_attn: tuple[str, ...] = ("attn2",)
    mlp: tuple[str, ...] = ("ff",)
    attn_input: str | None = None
    text_first: bool = False
    processor: type | None = None
    token_dim: int = 1

    def modules(self, kind: Module) -> tuple[nn.Module, ...]:
        """Return the modules of one kind in execution order."""
        modules = [getattr(self.block, name, None) for name in getattr(self, kind)]
        return tuple(module for module in modules if module is not None)

    def split(self, x: Tensor, n: int) -> tuple[Tensor | None, Tensor]:
        """Return the text tokens of a sequence, None if they are kept apart, and the `n` image tokens."""
        text_tokens = x.shape[1] - n
        return (x[:, :text_tokens], x[:, text_tokens:]) if self.text_first else (None, x)

    def grid(self, latent: Grid) -> Grid:
        """Return the token map of this site for a latent size.

        A patch embedding drops an incomplete patch; downsampling rounds odd sides up, as strided convolutions do.
        """
        return Grid(-(-(latent.h // self.patch) // self.stride), -(-(latent.w // self.patch) // self.stride))


@dataclass(frozen=True)
class Layout:
    """The parts of a network that compressors need.

    Attributes:
        model: Class name of the network, for messages.
        sites: All transformer blocks in execution order.
        latents: Name of the forward argument that holds the latents.
        metric: Default tensor for similarities and scores.
        prefix: Modules whose inputs do not depend on the condition, in execution order; an attention among them
            belongs to the first site.
        latent_of: Returns the latent size of a forward from its arguments; None if it is that of the latents.
        steps: Timestep value, in [0, 1000], of a timestep argument of 1.
        rotary: Returns cosines and sines, `(m, d)` each, of the rotary embedding at fractional positions (y, x) of the
            token map, `(m, 2)`; None if positions enter otherwise. Attentions take the cosines and sines of all tokens,
            text first, as `image_rotary_emb`.
    """

    model: str
    sites: tuple[Site, ...]
    latents: str
    metric: Metric
    prefix: tuple[nn.Module, ...] = ()
    latent_of: Callable[[Mapping[str, Any]], Grid] | None = None
    steps: float = 1
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


@singledispatch
def layout_of(denoiser: nn.Module) -> Layout:
    """Describe a denoiser. A new architecture registers a function here: `@layout_of.register`.

    Raises:
        InputError: If the network's class is unknown.
    """
    name, known = type(denoiser).__name__, [kind.__name__ for kind in layout_of.registry if kind is not object]
    if name in UNSUPPORTED:
        raise InputError(f"{name} is not supported: {UNSUPPORTED[name]}")
    raise InputError(
        f"{name} is not a network whose transformer blocks are known; expected a diffusers {' or '.join(known)} "
        "(for a pipeline pass pipe.unet or pipe.transformer)"
    )


@layout_of.register
def _(denoiser: UNet2DConditionModel) -> Layout:
    prefix = tuple(_unet_prefix(denoiser))
    sites = tuple(
        Site(name, index, part, stride, block, unconditional=getattr(block, "attn1", block) in prefix)
        for index, (name, part, stride, block) in enumerate(_unet_blocks(denoiser))
    )
    return Layout(type(denoiser).__name__, sites, "sample", "block_input", prefix)


@layout_of.register(DiTTransformer2DModel)
def transformer_layout(denoiser: Any) -> Layout:
    """Describe a transformer of `BasicTransformerBlock`s on one token map."""
    patch = denoiser.config["patch_size"]
    blocks = enumerate(denoiser.transformer_blocks)
    sites = tuple(Site(f"transformer_blocks.{i}", i, None, 1, block, patch) for i, block in blocks)
    return Layout(type(denoiser).__name__, sites, "hidden_states", "attn_input")


def _unet_blocks(unet: UNet2DConditionModel) -> Iterator[tuple[str, Part, int, nn.Module]]:
    levels: list[tuple[str, Part, Any]] = [
        (f"down_blocks.{i}", "down", part) for i, part in enumerate(unet.down_blocks)
    ]
    levels.append(("mid_block", "mid", unet.mid_block))
    levels += [(f"up_blocks.{i}", "up", part) for i, part in enumerate(unet.up_blocks)]
    stride = 1
    for name, part, level in levels:
        # Levels with bare attentions (Simple..., AttnDownBlock2D) have no transformer blocks and so no sites.
        for i, attention in enumerate(getattr(level, "attentions", None) or ()):
            for j, block in enumerate(getattr(attention, "transformer_blocks", ())):
                # Upscalers have blocks whose first attention is to the text, too.
                if not block.only_cross_attention:
                    yield f"{name}.attentions.{i}.transformer_blocks.{j}", part, stride, block
        stride *= 2 if getattr(level, "downsamplers", None) else 1
        stride //= 2 if getattr(level, "upsamplers", None) else 1


def _unet_prefix(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    """Yield the modules before the first cross-attention, if the network has the usual structure."""
    if unet.config["class_embed_type"] or unet.config["addition_embed_type"] or unet.config["num_class_embeds"]:
        # A second condition enters with the timestep, before all modules.
        return
    yield unet.conv_in
    level = unet.down_blocks[0]
    attention: Any = next(iter(getattr(level, "attentions", None) or ()), None)
    yield level.resnets[0]
    if not getattr(attention, "transformer_blocks", ()) or not hasattr(attention, "proj_in"):
        return
    yield from (attention.norm, attention.proj_in)
    first = attention.transformer_blocks[0]
    if isinstance(first.norm1, nn.LayerNorm) and not first.only_cross_attention:
        yield from (first.norm1, first.attn1)
