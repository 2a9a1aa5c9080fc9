"""Stable Diffusion XL: U-Nets conditioned on a prompt and on image sizes, in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bigain.backbones.loading import ModelFiles
from bigain.backbones.text import TextBackbone, pack, unpack
from bigain.errors import InputError

# Height and width of the original image, of the crop's corner and of the image.
_TIME_IDS = 6


class StableDiffusionXL(TextBackbone):
    """Stable Diffusion XL base (Podell et al., 2024), conditioned on a prompt and on images that are not cropped.

    A condition is the pooled state of the second text encoder and the states of both.
    """

    component = "unet"
    pipelines = ("StableDiffusionXLPipeline",)
    patch = 1
    widths: ClassVar[dict[str, Any]] = {
        "cross_attention_dim": ["text_encoder.hidden_size", "text_encoder_2.hidden_size"]
    }
    parts: ClassVar[dict[str, Any]] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer_2": CLIPTokenizer,
    }

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if (kind := config.get("addition_embed_type")) != "text_time":
            raise InputError(
                f"unet/config.json of {self.model} has addition_embed_type {kind!r}; expected 'text_time', a Stable "
                "Diffusion XL"
            )

    def load_settings(self, files: ModelFiles) -> dict[str, Any]:
        config = super().load_settings(files)
        self._zero_null = bool(files.index.get("force_zeros_for_empty_prompt", True))
        return config

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Pooled state, and the penultimate hidden states of both text encoders. `(k, 1280 + 77 * 2048)`."""
        first, second = (self.encoded(prompts, suffix, output_hidden_states=True) for suffix in self.suffixes)
        return pack(second.text_embeds, torch.cat((first.hidden_states[-2], second.hidden_states[-2]), -1))

    def null_condition(self) -> Tensor:
        """Zeros where model_index.json has `force_zeros_for_empty_prompt`, else an empty prompt."""
        condition = super().null_condition()
        return torch.zeros_like(condition) if self._zero_null else condition

    def blank_condition(self) -> Tensor:
        config = self.denoiser.config
        row = _pooled_width(config) + self.saved_prompt_tokens() * config["cross_attention_dim"]
        return torch.empty(1, row, device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        config = self.denoiser.config
        pooled, states = unpack(condition.to(noisy.dtype), _pooled_width(config), config["cross_attention_dim"])
        height, width = (side * self.pixels_per_latent for side in noisy.shape[2:])
        # Filled on the device; both sizes are those of the image, and its corner is (0, 0).
        sizes = noisy.new_zeros(len(noisy), _TIME_IDS)
        sizes[:, 0::4], sizes[:, 1::4] = height, width
        added = {"text_embeds": pooled, "time_ids": sizes}
        return self.denoiser(
            noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False
        )[0]


def _pooled_width(config: Mapping[str, Any]) -> int:
    return int(config["projection_class_embeddings_input_dim"]) - _TIME_IDS * int(config["addition_time_embed_dim"])
