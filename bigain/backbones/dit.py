"""DiT: class-conditional transformers in the diffusers format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.errors import InputError


class DiT(Backbone):
    """DiT-XL/2 and relatives (Peebles and Xie, 2023), conditioned on a class index, without guidance."""

    component = "transformer"

    def _load(self, source: str) -> None:
        self.denoiser = self._component(DiTTransformer2DModel, source, "transformer")

    def latents_of(self, image_size: int) -> tuple[int, int, int]:
        latents = super().latents_of(image_size)
        if latents != self.latent_shape:
            # Its position embedding has one size.
            raise InputError(
                f"{self.model} takes latents of {self.latent_shape}, but images of {image_size} px give {latents}; "
                "change data.image_size"
            )
        return latents

    def conditions(self, prompts: Sequence[str], indices: Sequence[int]) -> Tensor:
        """Class indices. `(k,)`, int64.

        Raises:
            InputError: If the model does not have that many classes.
        """
        known = self.denoiser.config["num_embeds_ada_norm"]
        unknown = [index for index in indices if not 0 <= index < known]
        if unknown:
            raise InputError(f"{self.model} has classes 0 to {known - 1}; the dataset asks for class {unknown[0]}")
        return torch.tensor(list(indices), device=next(self.denoiser.parameters()).device)

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = self.denoiser(noisy, timestep=timesteps, class_labels=condition, return_dict=False)[0]
        return output
