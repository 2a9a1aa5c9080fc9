"""Stable Diffusion: text-conditional U-Nets in the diffusers format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bigain.backbones.base import Backbone
from bigain.backbones.loading import load_tokenizer

_PROMPTS_PER_FORWARD = 64


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x and 2.x (Rombach et al., 2022), conditioned on a prompt, without guidance."""

    component = "unet"

    def _load(self, source: str) -> None:
        self.denoiser = self._component(UNet2DConditionModel, source, "unet")
        self.text_encoder: CLIPTextModel = self._component(CLIPTextModel, source, "text_encoder")
        self.tokenizer = load_tokenizer(CLIPTokenizer, source, self.local_files_only)

    def conditions(self, prompts: Sequence[str], indices: Sequence[int]) -> Tensor:
        """Last hidden states of the text encoder, padded to the tokenizer's length. `(k, 77, d)` on SD."""
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        ids = ids.to(next(self.text_encoder.parameters()).device)
        states = [self.text_encoder(part).last_hidden_state for part in ids.split(_PROMPTS_PER_FORWARD)]
        return torch.cat(states)

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        states = condition.to(noisy.dtype)
        output: Tensor = self.denoiser(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return output
