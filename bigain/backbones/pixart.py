"""PixArt: text-conditional transformers in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from bigain.backbones.loading import ModelFiles
from bigain.backbones.sites import layout_of, transformer_layout
from bigain.backbones.text import TextBackbone, pack, unpack
from bigain.errors import InputError

# Tokens of a prompt, the defaults of the pipelines.
_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArt(TextBackbone):
    """PixArt-alpha (Chen et al., 2024) and PixArt-Sigma (Chen et al., 2024), conditioned on a prompt.

    Prompts are lowercased, as in the pipelines without `clean_caption`. A condition is the mask of the prompt's tokens
    and their states.
    """

    component = "transformer"
    pipelines = tuple(_TOKENS)
    widths: ClassVar[dict[str, Any]] = {"caption_channels": ["text_encoder.d_model"]}
    parts: ClassVar[dict[str, Any]] = {
        "transformer": PixArtTransformer2DModel,
        "text_encoder": T5EncoderModel,
        "tokenizer": T5Tokenizer,
    }

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if (kind := config.get("norm_type", "ada_norm_single")) != "ada_norm_single":
            raise InputError(
                f"transformer/config.json of {self.model} has norm_type {kind!r}; expected 'ada_norm_single', a PixArt"
            )

    def prompt_tokens(self, files: ModelFiles, suffix: str, saved: Any) -> int:
        return _TOKENS[files.index["_class_name"]]

    def tokens(self, prompts: Sequence[str], suffix: str = "", **options: Any) -> Any:
        return super().tokens([prompt.lower().strip() for prompt in prompts], suffix, **options)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Mask and last hidden states of the text encoder. `(k, t + t * d)`, with 120 or 300 tokens of 4096."""
        states: Tensor = self.encoded(prompts, mask=True).last_hidden_state
        return pack(self.tokens(prompts).attention_mask.to(states), states)

    def blank_condition(self) -> Tensor:
        width, tokens = self.denoiser.config["caption_channels"], self.saved_prompt_tokens()
        return torch.empty(1, tokens * (1 + width), device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        channels = self.denoiser.config["caption_channels"]
        mask, states = unpack(condition.to(noisy.dtype), condition.shape[1] // (1 + channels), channels)
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            height, width = (side * self.pixels_per_latent for side in noisy.shape[2:])
            # Filled on the device.
            resolution = noisy.new_full((len(noisy), 2), height)
            resolution[:, 1] = width
            sizes = {"resolution": resolution, "aspect_ratio": noisy.new_full((len(noisy), 1), height / width)}
        text = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        return self.denoiser(noisy, **text, timestep=timesteps, added_cond_kwargs=sizes, return_dict=False)[0]


layout_of.register(PixArtTransformer2DModel, transformer_layout)
