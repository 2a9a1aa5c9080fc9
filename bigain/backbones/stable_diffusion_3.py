"""Stable Diffusion 3 and 3.5: transformers over text and image in the diffusers format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from bigain.backbones.loading import ModelFiles
from bigain.backbones.sites import Layout, Site, layout_of
from bigain.backbones.text import TextBackbone, pack, unpack
from bigain.diffusion.parametrisation import Flow

# Tokens of a prompt that T5 reads in the pipeline.
_T5_TOKENS = 256


class StableDiffusion3(TextBackbone):
    """Stable Diffusion 3 medium and 3.5 medium and large (Esser et al., 2024), conditioned on a prompt.

    Without a T5 encoder in the model, its states are zeros, as in the pipeline.
    """

    component = "transformer"
    pipelines = ("StableDiffusion3Pipeline",)
    kinds = (Flow,)
    optional = ("text_encoder_3",)
    widths: ClassVar[dict[str, Any]] = {
        "pooled_projection_dim": ["text_encoder.projection_dim", "text_encoder_2.projection_dim"],
        "joint_attention_dim": ["text_encoder_3.d_model"],
    }
    parts: ClassVar[dict[str, Any]] = {
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }

    def prompt_tokens(self, files: ModelFiles, suffix: str, saved: Any) -> Any:
        return min(saved, _T5_TOKENS) if suffix == "_3" and isinstance(saved, int) else saved

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Pooled states of both CLIPs; their penultimate states side by side, then those of T5: see `pack`."""
        clips = [self.encoded(prompts, suffix, output_hidden_states=True) for suffix in ("", "_2")]
        states = torch.cat([clip.hidden_states[-2] for clip in clips], dim=2)
        width = self.denoiser.config["joint_attention_dim"]
        states = F.pad(states, (0, width - states.shape[2]))
        if "_3" in self.suffixes:
            t5 = self.encoded(prompts, "_3").last_hidden_state.to(states)
        else:
            t5 = states.new_zeros(len(states), _T5_TOKENS, width)
        return pack(torch.cat([clip.text_embeds for clip in clips], dim=1), torch.cat((states, t5), dim=1))

    def blank_condition(self) -> Tensor:
        config = self.denoiser.config
        t5 = self.saved_prompt_tokens("_3") if "tokenizer_3" in self.find().parts else _T5_TOKENS
        states = (self.saved_prompt_tokens() + t5) * config["joint_attention_dim"]
        return torch.empty(1, config["pooled_projection_dim"] + states, device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        config = self.denoiser.config
        sizes = config["pooled_projection_dim"], config["joint_attention_dim"]
        pooled, states = unpack(condition.to(noisy.dtype), *sizes)
        text = {"encoder_hidden_states": states, "pooled_projections": pooled}
        return self.denoiser(noisy, **text, timestep=timesteps, return_dict=False)[0]


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
