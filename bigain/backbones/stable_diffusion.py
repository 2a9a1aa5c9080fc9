"""Stable Diffusion: text-conditional U-Nets in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bigain.backbones.base import Backbone
from bigain.backbones.loading import ModelFiles
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
    text_encoder: CLIPTextModel
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

    def load_settings(self, files: ModelFiles) -> dict[str, Any]:
        config = super().load_settings(files)
        text = files.config("text_encoder")
        takes, width = config.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
        positions, words = text.get("max_position_embeddings", 77), text.get("vocab_size", 49408)
        if any(value != width for value in (takes if isinstance(takes, list) else [takes])):
            raise InputError(
                f"unet/config.json of {self.model} has cross_attention_dim {takes}, but its text encoder gives states "
                f"of width {width}: they are not of one model"
            )
        self.tokenizer = files.load_tokenizer()
        tokens, known = self.tokenizer.model_max_length, len(self.tokenizer)
        whole = all(isinstance(number, int) for number in (tokens, positions, words))
        # Two mark start and end.
        if not whole or not 2 < tokens <= positions or known > words:
            raise InputError(
                f"the tokenizer of {self.model} has model_max_length {tokens!r} and {known} tokens, but its text "
                f"encoder {positions} and {words}: copy the model's own tokenizer, with its tokenizer_config.json"
            )
        return config

    def conditions(self, prompts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """Last hidden states of the text encoder, padded to the tokenizer's length. `(k, 77, d)` on SD."""
        ids = self._tokens(prompts).to(next(self.text_encoder.parameters()).device)
        states = [self.text_encoder(part).last_hidden_state for part in ids.split(_PROMPTS_PER_FORWARD)]
        return torch.cat(states).to(next(self.denoiser.parameters()).device)

    def finish_conditions(self) -> None:
        self.text_encoder.to("cpu")

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        """Cut or padded to the tokenizer's length. `(k, 77)` on SD, int64."""
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(list(prompts), **options).input_ids
        return ids

    def check_prompts(self, prompts: Sequence[str], distinct: bool) -> str:
        unique, length = list(dict.fromkeys(prompts)), self.tokenizer.model_max_length
        if distinct:
            first: dict[tuple[int, ...], str] = {}
            for prompt, ids in zip(unique, self._tokens(unique).tolist(), strict=True):
                if (other := first.setdefault(tuple(ids), prompt)) != prompt:
                    raise InputError(
                        f"{self.model} cannot tell {other!r} and {prompt!r} apart: it reads {length} tokens, without "
                        "regard to case, and they are the same; change the names or the prompt, or give both classes "
                        "one name: top1_merged counts them as one"
                    )
        # By default, transformers warns of their length, too.
        whole = self.tokenizer(unique, verbose=False).input_ids
        cut = [prompt for prompt, ids in zip(unique, whole, strict=True) if len(ids) > length]
        return f"prompts cut after {length} tokens: {len(cut)} of {len(unique)}, such as {cut[0]!r}" if cut else ""

    def null_condition(self) -> Tensor:
        return self.conditions([""], [0])

    def blank_condition(self) -> Tensor:
        file, files = "tokenizer/tokenizer_config.json", self.find()
        tokens = files.json(file).get("model_max_length")
        if not isinstance(tokens, int) or not 1 <= tokens <= _LONGEST_PROMPT:
            raise InputError(f"{file} of {files.source} gives model_max_length {tokens!r}; expected a number of tokens")
        return torch.empty(1, tokens, self.denoiser.config["cross_attention_dim"], device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        states = condition.to(noisy.dtype)
        output: Tensor = self.denoiser(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return output
