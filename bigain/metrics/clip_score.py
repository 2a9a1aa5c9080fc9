"""CLIP score: the similarity of an image and its prompt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from bigain.backbones.loading import UNLOADABLE
from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.metrics.pretrained import load_pretrained, missing_from
from bigain.tokens.precision import without_autocast


class ClipScore(ImageMetric):
    """`clip_score[model]`: 100 times the cosine of the CLIP embeddings of image and prompt, at least 0.

    Hessel et al. (2021) multiply by 2.5 instead of 100. Prompts longer than the model reads are cut.
    """

    name = "clip_score"
    better = "higher"
    title = "CLIP score"
    needs = frozenset({"images", "prompts"})
    later = "bigain score --clip-model"
    published = "openai/clip-vit-large-patch14"

    def __init__(self, folder: str) -> None:
        """Set the metric up.

        Args:
            folder: A CLIP model as transformers saves it, with safetensors weights, tokenizer and image processor.
                Papers report `openai/clip-vit-large-patch14` or `openai/clip-vit-base-patch16`: say which.
        """
        self.folder = Path(folder).expanduser()
        self._model: CLIPModel | None = None
        self._digest = ""

    @property
    def label(self) -> str:
        return f"clip_score[{self.folder.name}]"

    def unavailable(self) -> str | None:
        files = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
        reason = missing_from(self.folder, files, "a CLIP model as transformers saves it")
        return reason and f"{reason}; get one with `hf download {self.published} --local-dir FOLDER`"

    def model(self) -> CLIPModel:
        """Return the model; loads it first if necessary.

        Raises:
            InputError: If it is missing, incomplete or damaged.
        """
        if self._model is None:
            if reason := self.unavailable():
                raise InputError(f"the {self.title} cannot be computed: {reason}")
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                self._processor = CLIPImageProcessor.from_pretrained(self.folder, local_files_only=True)
            except UNLOADABLE as error:
                raise InputError(f"cannot load the CLIP model {self.folder}: {' '.join(str(error).split())}") from error
            self._model, self._digest = load_pretrained(CLIPModel, self.folder, "CLIP model")
        return self._model

    def digest(self) -> str:
        """Return the sha256 of the weights, in hex; loads the model first if necessary."""
        self.model()
        return self._digest

    def cosines(self, images: Images) -> Tensor:
        """Compute the cosine of the embeddings of each image and its prompt. `(b,)`, float32."""
        pixels, prompts = images.pixels, list(images.prompts)
        if len(pixels) != len(prompts):
            raise ValueError(f"{len(pixels)} images and {len(prompts)} prompts")
        model = self.model().to(pixels.device)
        length = model.config.text_config.max_position_embeddings
        text = self._tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        processed = self._processor(images=list(pixels.cpu()), return_tensors="pt")["pixel_values"]
        with torch.no_grad(), without_autocast(pixels):
            result = model(
                input_ids=text["input_ids"].to(pixels.device),
                attention_mask=text["attention_mask"].to(pixels.device),
                pixel_values=processed.to(pixels.device),
            )
        # Both embeddings have unit length.
        cosines: Tensor = (result.image_embeds * result.text_embeds).sum(dim=-1)
        return cosines

    def measure(self, images: Images) -> Tensor:
        """Compute the score of each image with its prompt. `(b,)` in [0, 100], float32.

        Raises:
            InputError: If the model cannot be loaded.
        """
        return (100 * self.cosines(images)).clamp(min=0)
