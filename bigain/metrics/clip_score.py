"""CLIP score: the similarity of an image and its prompt."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.metrics.pretrained import load_pretrained
from bigain.tokens.precision import without_autocast


class ClipScore(ImageMetric):
    """`clip_score[model]`: 100 times the cosine of the CLIP embeddings of image and prompt, at least 0.

    Hessel et al. (2021) multiply by 2.5 instead of 100. Prompts longer than the model reads are cut.
    """

    name = "clip_score"
    better = "higher"
    title = "CLIP score"
    needs = frozenset({"images", "prompts"})
    later = "bigain score --metric ClipScore --metric.folder"
    published = "openai/clip-vit-large-patch14"

    def __init__(self, folder: str) -> None:
        """Set the metric up.

        Args:
            folder: A CLIP model as transformers saves it, with safetensors weights, tokenizer and image processor.
                Papers report `openai/clip-vit-large-patch14` or `openai/clip-vit-base-patch16`: say which.
        """
        self.folder = Path(folder).expanduser()

    @cached_property
    def loaded(self) -> tuple[Any, str, list[Any]]:
        """The model, the sha256 of its weights in hex, its tokenizer and image processor: see `load_pretrained`."""
        return load_pretrained(str(self.folder), self.published, CLIPModel, AutoTokenizer, CLIPImageProcessor)

    def unavailable(self) -> str | None:
        try:
            _ = self.loaded
        except InputError as error:
            return str(error)
        return None

    @property
    def label(self) -> str:
        return f"clip_score[{self.folder.name}]"

    def cosines(self, images: Images) -> Tensor:
        """Compute the cosine of the embeddings of each image and its prompt. `(b,)`, float32."""
        pixels, (model, _, (tokenizer, processor)) = images.pixels, self.loaded
        length = model.config.text_config.max_position_embeddings
        text = tokenizer(
            list(images.prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        processed = processor(images=list(pixels.cpu()), return_tensors="pt")["pixel_values"]
        with torch.no_grad(), without_autocast(pixels):
            result = model.to(pixels.device)(
                input_ids=text["input_ids"].to(pixels.device),
                attention_mask=text["attention_mask"].to(pixels.device),
                pixel_values=processed.to(pixels.device),
            )
        # Both embeddings have unit length.
        return (result.image_embeds * result.text_embeds).sum(dim=-1)

    def measure(self, images: Images) -> Tensor:
        """Compute the score of each image with its prompt. `(b,)` in [0, 100], float32.

        Raises:
            InputError: If the model cannot be loaded.
        """
        return (100 * self.cosines(images)).clamp(min=0)
