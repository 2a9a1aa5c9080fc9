"""Stable Diffusion: text-conditional U-Nets in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bigain.backbones.base import Backbone
from bigain.backbones.hub import read_json
from bigain.backbones.loading import load_tokenizer
from bigain.errors import InputError

_PROMPTS_PER_FORWARD = 64
# Tokenizers saved without a length say 1e30.
_LONGEST_PROMPT = 100_000
# U-Net settings that need a second condition, and the models that have them.
_SECOND_CONDITIONS = {
    "addition_embed_type": "Stable Diffusion XL and relatives",
    "class_embed_type": "unCLIP and relatives",
    "num_class_embeds": "upscalers",
    "encoder_hid_dim_type": "Kandinsky and relatives",
}


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x and 2.x (Rombach et al., 2022), conditioned on a prompt, without guidance."""

    component = "unet"
    parts: ClassVar[dict[str, Any]] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }

    def _check(self, config: Mapping[str, Any]) -> None:
        for setting, model in _SECOND_CONDITIONS.items():
            if config.get(setting) is not None:
                raise InputError(
                    f"unet/config.json of {self.model} has {setting} {config[setting]!r}, a condition besides the text "
                    f"that {model} need and this class does not provide; expected Stable Diffusion 1.x or 2.x"
                )

    def _load(self, source: str) -> None:
        super()._load(source)
        self.text_encoder: CLIPTextModel = self._load_part(source, "text_encoder", CLIPTextModel)
        self.tokenizer = load_tokenizer(CLIPTokenizer, source, self.local_files_only)

    def conditions(self, prompts: Sequence[str], labels: Sequence[int]) -> Tensor:
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

    def null_condition(self) -> Tensor:
        return self.conditions([""], [0])

    def blank_condition(self, local_files_only: bool) -> Tensor:
        file = "tokenizer/tokenizer_config.json"
        source = self.find(local_files_only).source
        tokens = read_json(source, file, local_files_only).get("model_max_length")
        if not isinstance(tokens, int) or not 1 <= tokens <= _LONGEST_PROMPT:
            raise InputError(f"{file} of {source} gives model_max_length {tokens!r}; expected a number of tokens")
        return torch.empty(1, tokens, self.denoiser.config["cross_attention_dim"], device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        states = condition.to(noisy.dtype)
        output: Tensor = self.denoiser(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return output
