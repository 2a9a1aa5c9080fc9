"""Backbones that read prompts with one or more text encoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.loading import ModelFiles
from bigain.errors import InputError

_PROMPTS_PER_FORWARD = 64
# Tokenizers saved without a length say 1e30.
_LONGEST_PROMPT = 100_000


class TextBackbone(Backbone):
    """A backbone conditioned on a prompt.

    Text encoders and tokenizers among its parts come in pairs with the same suffix: `text_encoder_2`, `tokenizer_2`.

    Attributes:
        widths: Settings of the denoiser that are the sum of settings of text encoders: `text_encoder.hidden_size`.
        cuts_prompts: Whether a prompt longer than an encoder takes is cut, with a warning; otherwise it is refused.
    """

    widths: ClassVar[Mapping[str, Sequence[str]]]
    cuts_prompts: ClassVar[bool] = False

    @property
    def suffixes(self) -> list[str]:
        """Suffix of each text encoder and its tokenizer, after `load_settings`."""
        return [name.removeprefix("tokenizer") for name in self.parts if name in vars(self)]

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Compute the conditions of a few prompts on the device of the text encoders. `(k, ...)`."""

    def prompt_tokens(self, files: ModelFiles, suffix: str, saved: Any) -> Any:
        """Return how many tokens of a prompt are read; `saved` is the `model_max_length` of the tokenizer's files."""
        return saved

    def load_settings(self, files: ModelFiles) -> dict[str, Any]:
        config = super().load_settings(files)
        for setting, sources in self.widths.items():
            settings = [source.split(".") for source in sources]
            if not all(part in files.parts for part, _ in settings):
                continue
            width, saved = sum(files.config(part).get(name, 512) for part, name in settings), config.get(setting, 1280)
            if any(value != width for value in (saved if isinstance(saved, list) else [saved])):
                raise InputError(
                    f"{self.component}/config.json of {self.model} has {setting} {saved}, but its text encoder gives "
                    f"states of width {width}: they are not of one model"
                )
        for suffix in [name.removeprefix("tokenizer") for name in files.parts if name.startswith("tokenizer")]:
            text = files.config(f"text_encoder{suffix}")
            tokenizer = files.load_tokenizer(f"tokenizer{suffix}")
            tokens = tokenizer.model_max_length = self.prompt_tokens(files, suffix, tokenizer.model_max_length)
            # T5 has no positions.
            positions = text.get("max_position_embeddings", _LONGEST_PROMPT if "d_model" in text else 77)
            token_count, embedding_count = len(tokenizer), text.get("vocab_size", 49408)
            are_integers = all(isinstance(number, int) for number in (tokens, positions, embedding_count))
            # Two tokens mark start and end.
            if not are_integers or not 2 < tokens <= positions or token_count > embedding_count:
                raise InputError(
                    f"the tokenizer{suffix} of {self.model} has model_max_length {tokens!r} and {token_count} tokens, "
                    f"but its text encoder {positions} and {embedding_count}: copy the model's own tokenizer, with its "
                    "tokenizer_config.json"
                )
            setattr(self, f"tokenizer{suffix}", tokenizer)
        return config

    def saved_prompt_tokens(self, suffix: str = "") -> int:
        """Return how many tokens of a prompt an encoder reads; needs only the tokenizer's configuration.

        Raises:
            InputError: If it does not say.
        """
        file, files = f"tokenizer{suffix}/tokenizer_config.json", self.find()
        tokens = self.prompt_tokens(files, suffix, files.json(file).get("model_max_length"))
        if not isinstance(tokens, int) or not 1 <= tokens <= _LONGEST_PROMPT:
            raise InputError(f"{file} of {files.source} has model_max_length {tokens!r}; expected a number of tokens")
        return tokens

    def conditions(self, prompts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """See `encode_prompts`; on the denoiser's device. `(k, ...)`."""
        starts = range(0, len(prompts), _PROMPTS_PER_FORWARD)
        batches = [self.encode_prompts(prompts[start : start + _PROMPTS_PER_FORWARD]) for start in starts]
        return torch.cat(batches).to(next(self.denoiser.parameters()).device)

    def finish_conditions(self) -> None:
        for suffix in self.suffixes:
            getattr(self, f"text_encoder{suffix}").to("cpu")

    def null_condition(self) -> Tensor:
        return self.conditions([""], [0])

    def tokens(self, prompts: Sequence[str], suffix: str = "", **options: Any) -> Any:
        """Call a tokenizer; without options, cut or pad to its length. Its `input_ids` are then `(k, t)`, int64."""
        tokenizer = getattr(self, f"tokenizer{suffix}")
        length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        return tokenizer(list(prompts), **(options or {**length, "return_tensors": "pt"}))

    def encoded(self, prompts: Sequence[str], suffix: str = "", mask: bool = False, **options: Any) -> Any:
        """Return the output of a text encoder; with `mask` it does not see the padding."""
        encoder, tokens = getattr(self, f"text_encoder{suffix}"), self.tokens(prompts, suffix)
        inputs = {"input_ids": tokens.input_ids} | ({"attention_mask": tokens.attention_mask} if mask else {})
        device = next(encoder.parameters()).device
        return encoder(**{name: value.to(device) for name, value in inputs.items()}, **options)

    def check_prompts(self, prompts: Sequence[str], distinct: bool) -> str:
        unique = list(dict.fromkeys(prompts))
        lengths = [getattr(self, f"tokenizer{suffix}").model_max_length for suffix in self.suffixes]
        if distinct:
            first_prompts: dict[tuple[int, ...], str] = {}
            token_ids = torch.cat([self.tokens(unique, suffix).input_ids for suffix in self.suffixes], 1)
            for prompt, ids in zip(unique, token_ids.tolist(), strict=True):
                if (other := first_prompts.setdefault(tuple(ids), prompt)) != prompt:
                    raise InputError(
                        f"{self.model} cannot tell {other!r} and {prompt!r} apart: it reads {max(lengths)} tokens, "
                        "without regard to case, and they are the same; change the names or the prompt, or give both "
                        "classes one name: top1_merged counts them as one"
                    )
        for suffix, length in zip(self.suffixes, lengths, strict=True):
            # Not verbose, as transformers would warn of their length, too.
            uncut_ids = self.tokens(unique, suffix, verbose=False).input_ids
            if cut := [prompt for prompt, ids in zip(unique, uncut_ids, strict=True) if len(ids) > length]:
                first_cut = repr(shorten(cut[0], 80))
                text = f"prompts cut after {length} tokens: {len(cut)} of {len(unique)}, such as {first_cut}"
                if not self.cuts_prompts:
                    raise InputError(f"{self.model}: {text}; shorten them, or leave the items out with --data.subset")
                return text
        return ""


def pack(vector: Tensor, states: Tensor) -> Tensor:
    """Join two tensors of a condition to one row each. `(k, v)`, `(k, t, d)` -> `(k, v + t * d)`."""
    return torch.cat((vector, states.flatten(1)), 1)


def unpack(condition: Tensor, vector: int, width: int) -> tuple[Tensor, Tensor]:
    """Undo `pack`, without a copy. `(b, vector + t * width)` -> `(b, vector)`, `(b, t, width)`."""
    return condition[:, :vector], condition[:, vector:].unflatten(1, (-1, width))
