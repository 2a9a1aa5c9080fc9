"""Stable Diffusion: text-conditional U-Nets in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bigain.backbones.text import TextBackbone
from bigain.errors import InputError

# Settings of U-Nets with a second condition: SDXL, unCLIP, upscalers, Kandinsky.
_SECOND_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


class StableDiffusion(TextBackbone):
    """Stable Diffusion 1.x and 2.x (Rombach et al., 2022), conditioned on a prompt, without guidance."""

    component = "unet"
    widths: ClassVar[dict[str, Any]] = {"cross_attention_dim": ["text_encoder.hidden_size"]}
    cuts_prompts = True
    parts: ClassVar[dict[str, Any]] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }

    def _check_config(self, config: Mapping[str, Any]) -> None:
        for setting in _SECOND_CONDITIONS:
            if config.get(setting) is not None:
                raise InputError(
                    f"unet/config.json of {self.model} has {setting} {config[setting]!r}, a second condition; "
                    "expected Stable Diffusion 1.x or 2.x (for SDXL use bigain.backbones.StableDiffusionXL)"
                )

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden states of the text encoder, padded to the tokenizer's length. `(k, 77, d)` on SD."""
        return self.encoded(prompts).last_hidden_state

    def blank_condition(self) -> Tensor:
        width = self.denoiser.config["cross_attention_dim"]
        return torch.empty(1, self.saved_prompt_tokens(), width, device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        states = condition.to(noisy.dtype)
        return self.denoiser(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
