"""DiT: class-conditional transformers in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.diffusion.parametrisation import Diffusion, Flow, Parametrisation
from bigain.errors import InputError

_IMAGENET = 1000


class DiT(Backbone):
    """DiT-XL/2 and relatives (Peebles and Xie, 2023), conditioned on a class index, without guidance.

    With a scheduler of flow matching, the network predicts the velocity, as SiT (Ma et al., 2024) does.
    """

    component = "transformer"
    parts: ClassVar[dict[str, Any]] = {"transformer": DiTTransformer2DModel}
    kinds: ClassVar[tuple[type[Parametrisation], ...]] = (Diffusion, Flow)

    def _check_config(self, config: Mapping[str, Any]) -> None:
        # Under the class name of diffusers before 0.28, only this tells PixArt from DiT.
        if (kind := config.get("norm_type", "ada_norm_zero")) != "ada_norm_zero":
            raise InputError(
                f"transformer/config.json of {self.model} has norm_type {kind!r}; expected 'ada_norm_zero', a DiT "
                "conditioned on a class index, not on a text as PixArt"
            )

    def latents_of(self, image_size: int) -> tuple[int, int, int]:
        latents = super().latents_of(image_size)
        if latents != self.latent_shape:
            # The position embedding has a fixed size.
            actual = f"images of {image_size} px give {latents}; change the image size"
            raise InputError(f"{self.model} takes latents of {self.latent_shape}, but {actual}")
        return latents

    def conditions(self, prompts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """Class labels. `(b,)`, int64."""
        return torch.tensor(list(labels), device=next(self.denoiser.parameters()).device)

    def check_classes(self, indices: Sequence[int] | None, number: int) -> None:
        classes = self.denoiser.config["num_embeds_ada_norm"]
        # A model with 1000 classes is trained on ImageNet, whose class order other datasets do not have.
        if indices is None and (classes != number or classes == _IMAGENET):
            raise InputError(
                f"the classes of this dataset are not in the label space of {self.model}: the model has {classes} "
                f"classes, the dataset {number} different ones; use a text-conditional model or a DiT trained on them"
            )
        unknown = [index for index in indices or () if not 0 <= index < classes]
        if unknown:
            raise InputError(f"{self.model} has classes 0 to {classes - 1}; the dataset asks for class {unknown[0]}")

    def null_condition(self) -> Tensor:
        null_class = int(self.denoiser.config["num_embeds_ada_norm"])
        table = self.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
        if table.num_embeddings <= null_class:
            raise InputError(f"{self.model} has {null_class} classes and no unconditional one; sample with guidance: 1")
        return torch.tensor([null_class], device=table.weight.device)

    def blank_condition(self) -> Tensor:
        return torch.empty(1, dtype=torch.int64, device="meta")

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        return self.denoiser(noisy, timestep=timesteps, class_labels=condition, return_dict=False)[0]
