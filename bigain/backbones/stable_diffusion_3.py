"""Stable Diffusion 3 and 3.5: transformers over text and image in the diffusers format."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0

from bigain.backbones.sites import Layout, Site, layout_of


@layout_of.register
def _(denoiser: SD3Transformer2DModel) -> Layout:
    patch = denoiser.config["patch_size"]
    sites = tuple(
        Site(
            *(f"transformer_blocks.{i}", i, None, 1, block, patch),
            # The second attention of SD 3.5 medium has image tokens only.
            self_attn=("attn", "attn2"),
            cross_attn=(),
            processor=JointAttnProcessor2_0,
            token_dim=2,
        )
        for i, block in enumerate(denoiser.transformer_blocks)
    )
    return Layout(type(denoiser).__name__, sites, "hidden_states", "attn_input")
