"""The backbone interface: images to latents, classes to conditions, noise predictions. It never compresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin
from torch import Tensor

from bigain.backbones.loading import (
    load_scheduler,
    scheduler_config,
)
from bigain.backbones.marks import mark
from bigain.backbones.model_files import ModelFiles
from bigain.diffusion.noising import epsilon_from_velocity
from bigain.errors import InputError


class Backbone(ModelFiles, ABC):
    """A diffusion model loaded from a diffusers folder or hub id, with or without a VAE.

    Attributes:
        denoiser: The network that compressors hook; there after `load`.
        vae: None for a pixel-space model.
        scheduler_config: Settings of the sampler that the model was saved with, among them its noise schedule.
        prediction_type: `epsilon` or `v_prediction`.
    """

    denoiser: ModelMixin
    vae: AutoencoderKL | None

    def load(self) -> None:
        """Read the weights, once; further calls do nothing.

        Raises:
            InputError: If the model cannot be found or is not what this class loads.
        """
        if self.loaded:
            return
        found = self.find(self.local_files_only)
        self.denoiser_config(found, self.local_files_only)
        self.scheduler_config = scheduler_config(found.source, self.local_files_only)
        self.set_schedule(load_scheduler(found.source, self.local_files_only))
        self.vae = self._component(found.source, "vae", AutoencoderKL) if "vae" in found.parts else None
        self._load(found.source)
        self.requires_grad_(False)
        self.eval()
        if self.channels_last:
            self.denoiser.to(memory_format=torch.channels_last)
        self.loaded = True

    def set_schedule(self, scheduler: DDPMScheduler) -> None:
        """Take the noise schedule and the parametrisation from a scheduler."""
        self.prediction_type: str = scheduler.config["prediction_type"]
        # Not a buffer: a half-precision trainer would round it, with relative errors above 1e-2 at its small end.
        self._alpha_bar = scheduler.alphas_cumprod.float()

    def _load(self, source: str) -> None:
        """Set `denoiser` and whatever conditions need."""
        self.denoiser = self._component(source, self.component, self.parts[self.component])

    @abstractmethod
    def conditions(self, prompts: Sequence[str], indices: Sequence[int] | None) -> Tensor:
        """Conditions of all classes, computed once. `(k, ...)`.

        Args:
            prompts: Text per class.
            indices: Index of each class in a class-conditional model's label space; None if the dataset's labels
                mean nothing but to a model of exactly these classes.
        """

    @abstractmethod
    def conditions_of(self, prompts: Sequence[str], indices: Sequence[int]) -> Tensor:
        """Conditions of single items. `(b, ...)`.

        Args:
            prompts: Text per item.
            indices: Class of each item in the model's label space.
        """

    @abstractmethod
    def null_condition(self) -> Tensor:
        """The condition that stands for none, in guidance. `(1, ...)`.

        Raises:
            InputError: If the model was trained without one.
        """

    @abstractmethod
    def blank_condition(self, local_files_only: bool) -> Tensor:
        """One condition without content on the meta device; of the weights, not even the denoiser's are needed.

        Args:
            local_files_only: Never ask the hub.

        Raises:
            InputError: If its size cannot be read.
        """

    def check_classes(self, prompts: Sequence[str], indices: Sequence[int] | None) -> None:
        """Raise an InputError if `conditions` cannot take these classes; of the weights, only the denoiser is needed.

        Args:
            prompts: Text per class.
            indices: As for `conditions`.
        """

    @abstractmethod
    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Raw network output. `(b, c, h, w)`."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents the network was trained on."""
        config = self.denoiser.config
        size = config["sample_size"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return config["in_channels"], height, width

    def latents_of(self, image_size: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of square images.

        Args:
            image_size: Side in px.

        Raises:
            InputError: If the network cannot take them.
        """
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        side = image_size // factor
        if side < 1:
            raise InputError(f"images of {image_size} px are too small for the VAE of {self.model}")
        return self.latent_shape[0], side, side

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents: the posterior mean times the scaling factor, or the pixels themselves.

        Args:
            images: `(b, 3, s, s)`, uint8 in [0, 255].

        Returns:
            Latents in float32. `(b, c, h, w)`.
        """
        pixels = images.float() / 127.5 - 1
        if self.vae is None:
            return pixels
        with mark("encoder", len(images)):
            latents: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean
        # The VAE may answer channels-last; a latent that was stored and read back has to compute the same.
        return (latents.float() * self.vae.config["scaling_factor"]).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1]; values may lie a little outside.

        Args:
            latents: `(b, c, h, w)`, float32.

        Returns:
            `(b, 3, s, s)`, float32.
        """
        if self.vae is None:
            return latents
        scaled = (latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        with mark("decoder", len(latents)):
            pixels: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return pixels.float()

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """Cumulative signal variance at integer timesteps. `(b,)` -> `(b,)`, float32."""
        if self._alpha_bar.device != timesteps.device:
            self._alpha_bar = self._alpha_bar.to(timesteps.device)
        return self._alpha_bar[timesteps]

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in `noisy`, whatever the network's parametrisation.

        Args:
            noisy: Noised latents. `(b, c, h, w)`, float32.
            timesteps: `(b,)`, int64 in 0..999.
            condition: Rows of `conditions`. `(b, ...)`.

        Returns:
            Predicted noise in float32. `(b, c, h, w)`.
        """
        output = self.predict(noisy, timesteps, condition)
        if self.prediction_type == "v_prediction":
            return epsilon_from_velocity(output, noisy, self.alpha_bar(timesteps))
        return output

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The network's output in its own parametrisation, `prediction_type`; learned variances are dropped.

        Args:
            noisy: Noised latents. `(b, c, h, w)`, float32.
            timesteps: Values in [0, 999], possibly fractional. `(b,)`.
            condition: Rows of `conditions`. `(b, ...)`.

        Returns:
            `(b, c, h, w)`, float32.
        """
        parameter = next(self.denoiser.parameters())
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        with mark("denoiser", len(noisy)):
            output = self._denoise(noisy.to(parameter.dtype, memory_format=layout), timesteps, condition)
        # A network with learned variance appends it to the noise.
        return output[:, : noisy.shape[1]].float()
