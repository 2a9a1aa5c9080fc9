"""The backbone interface: images to latents, classes to conditions, noise predictions. It never compresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from torch import Tensor, nn

from bigain.backbones.compilation import Compile
from bigain.backbones.hub import read_json
from bigain.backbones.loading import ModelFiles, find_model, listed_class
from bigain.backbones.marks import mark
from bigain.backbones.noise_schedule import load_schedule, parametrisation_of
from bigain.diffusion.parametrisation import Diffusion, Parametrisation, Target, resolution_shift
from bigain.errors import InputError, check_choice

Precision = Literal["float32", "bfloat16", "float16"]


# With more tokens than the square of this, attention overflows the sizes of tensors.
_LARGEST_LATENT = 16_384


class Backbone(nn.Module, ABC):
    """A diffusion model loaded from a diffusers folder or hub id, with or without a VAE.

    Attributes:
        component: Folder of the denoiser.
        parts: Class to load by folder, except the VAE and the scheduler, which are the same for all models.
        optional: Parts that a model may lack; a text encoder lacks its tokenizer, too.
        packing: Channels of the denoiser per channel of a latent: more than 1 if it takes patches.
        patch: Images must be a multiple of this many latent pixels; None is the denoiser's `patch_size`, if any.
        pipelines: Pipelines whose models this class loads, where the classes of the parts do not tell.
        denoiser: The network that compressors hook; available after `load`.
        vae: None for a pixel-space model.
        kinds: Kinds of diffusion that networks of this class are trained for: `Diffusion`, `Flow` or both.
        scheduler_config: Settings of the sampler that the model was saved with, including its noise schedule.
        training_schedule: The noise schedule that the model was trained with.
        parametrisation: Its noise levels, and what the network predicts.
    """

    component: ClassVar[str]
    parts: ClassVar[dict[str, Any]]
    optional: ClassVar[tuple[str, ...]] = ()
    packing: ClassVar[int] = 1
    patch: ClassVar[int | None] = None
    pipelines: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[type[Parametrisation], ...]] = (Diffusion,)
    parametrisation: Parametrisation
    denoiser: ModelMixin
    vae: AutoencoderKL | None

    def __init__(
        self,
        model: str,
        dtype: Precision = "float32",
        local_files_only: bool = False,
        safetensors_only: bool = True,
        compile: Compile = "none",
        channels_last: bool = False,
        cuda_graph: bool = False,
        variant: str | None = None,
    ) -> None:
        """Store what to load; nothing is read yet.

        Args:
            model: Local diffusers folder, name of an embedded model, such as `shapes_dit`, or hub id.
            dtype: Precision to load in. A true-half `trainer.precision` converts a float32 model later; loading in
                half at once saves the memory of the float32 copy.
            local_files_only: Never ask the hub. `HF_HUB_OFFLINE=1` does the same for everything.
            safetensors_only: Refuse weights in `.bin` files. They are pickles; if false, torch's weights-only loader
                reads them where there are no safetensors, and runs no code from them.
            compile: What torch compiles of the denoiser: `none`, `whole`, or `regional`, each transformer block by
                itself. Compiled code rounds differently.
            cuda_graph: On a GPU, launch all kernels of a forward together: see `use_graphs`. Forwards are padded to
                one size.
            channels_last: Store images and convolutions channels last. Measure it: SD 2.0 became slower on an H100.
            variant: The `fp16` of weights named `diffusion_pytorch_model.fp16.safetensors`; null takes those without a
                variant or, in a folder, the only variant that there is.

        Raises:
            InputError: If `compile` is none of these, or set together with `cuda_graph`.
        """
        super().__init__()
        check_choice("compile", compile, get_args(Compile))
        self.model = model
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.local_files_only = local_files_only
        self.safetensors_only = safetensors_only
        self.compilation = compile
        if cuda_graph and compile != "none":
            raise InputError(f"cuda_graph is true and compile is {compile}; set one of them")
        self.cuda_graph = cuda_graph
        self.channels_last = channels_last
        self.variant = variant
        self.loaded = False

    @property
    def takes_text(self) -> bool:
        """Whether conditions are made from text; otherwise from classes."""
        return any(name.startswith("text_encoder") for name in self.parts)

    def find(self) -> ModelFiles:
        """Find the model and its components.

        Raises:
            InputError: If the model cannot be found or its model_index.json lists another kind of model.
        """
        source = find_model(self.model)
        index = read_json(source, "model_index.json", self.local_files_only)
        absent = {name for name in (*self.optional, "vae") if listed_class(index, name) is None}
        # Without its encoder, a tokenizer that pipelines still save has no use.
        absent |= {name.replace("text_encoder", "tokenizer") for name in absent}
        parts = {name: kind for name, kind in {**self.parts, "vae": AutoencoderKL}.items() if name not in absent}
        files = ModelFiles(source, parts, self.local_files_only, self.safetensors_only, self.variant, index)
        files.check_index(type(self).__name__, self.pipelines)
        return files

    def denoiser_config(self, files: ModelFiles) -> dict[str, Any]:
        """Read the denoiser's configuration and check that this class can call the network.

        Raises:
            InputError: If it cannot be read or is that of another kind of model.
        """
        config = files.config(self.component)
        channels = config.get("in_channels", 4)
        expected, origin = 3, "for RGB images, as the model has no VAE"
        if "vae" in files.parts:
            vae = files.config("vae")
            # LDM3D has the depth beside the colours.
            if (colours := [vae.get("in_channels", 3), vae.get("out_channels", 3)]) != [3, 3]:
                raise InputError(f"the VAE of {self.model} has in_channels, out_channels {colours}; expected 3: RGB")
            expected = vae.get("latent_channels", 4)
            expected = self.packing * expected if isinstance(expected, int) else expected
            origin = f"{self.packing} per channel of its VAE (more for inpainting, depth or editing)"
        out = config.get("out_channels") or channels
        if channels != expected or not isinstance(channels, int) or out not in (channels, 2 * channels):
            raise InputError(
                f"{self.component}/config.json of {self.model} has in_channels {channels!r} and out_channels {out!r}; "
                f"expected {expected!r} in, {origin}, and as many or twice as many out"
            )
        self._check_config(config)
        return config

    def load(self) -> None:
        """Read the weights; further calls do nothing.

        Raises:
            InputError: If the model cannot be found or is not what this class loads.
        """
        if self.loaded:
            return
        files = self.find()
        self.load_settings(files)
        self.vae = files.load("vae", self.dtype) if "vae" in files.parts else None
        self.denoiser = files.load(self.component, self.dtype)
        for name in files.parts:
            if name.startswith("text_encoder"):
                setattr(self, name, files.load(name, self.dtype))
        self.requires_grad_(False)
        self.eval()
        if self.channels_last:
            self.denoiser.to(memory_format=torch.channels_last)
        self.loaded = True

    def load_settings(self, files: ModelFiles) -> dict[str, Any]:
        """Read everything but the weights; return the denoiser's configuration.

        Raises:
            InputError: If something cannot be read, is of another kind of model, or the components do not fit together.
        """
        config = self.denoiser_config(files)
        self.scheduler_config, scheduler = load_schedule(files, self.kinds)
        self.set_schedule(scheduler)
        return config

    def set_schedule(self, scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler) -> None:
        """Take the noise schedule and the parametrisation from a scheduler."""
        self.training_schedule = scheduler
        self.parametrisation = parametrisation_of(scheduler)

    def _check_config(self, config: Mapping[str, Any]) -> None:
        """Raise an InputError if this class cannot call a denoiser of this configuration."""

    @abstractmethod
    def conditions(self, prompts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """Compute the condition of each class or item from its text, or its label in the model. `(b, ...)`."""

    def finish_conditions(self) -> None:
        """Move what only `conditions` needs off the device; further calls are slow."""

    def check_guidance(self) -> None:
        """Raise an InputError if models of this kind have no null condition; needs no weights."""

    @abstractmethod
    def null_condition(self) -> Tensor:
        """Return the unconditional condition for guidance, `(1, ...)`, or raise an InputError if there is none."""

    @abstractmethod
    def blank_condition(self) -> Tensor:
        """Return one condition on the meta device; needs no weights. `(1, ...)`."""

    def check_classes(self, indices: Sequence[int] | None, number: int) -> None:
        """Raise an InputError if the model does not have these classes; needs no weights but the denoiser's.

        `indices` are the ImageNet indices of the classes; None if only a model trained on this dataset, of `number`
        classes, knows its labels.
        """

    def check_prompts(self, prompts: Sequence[str], distinct: bool) -> str:
        """Check that the model can read prompts; needs no weights.

        Returns a warning if prompts are cut, else an empty text; raises an InputError if different prompts must be
        `distinct` to the model and are not.
        """
        return ""

    @abstractmethod
    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Any:
        """Return the raw network output. `(b, c, h, w)`."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents the network was trained on."""
        config = self.denoiser.config
        size = config["sample_size"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return config["in_channels"], height, width

    @property
    def pixels_per_latent(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latents_of(self, image_size: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of square images; raises an InputError if the network takes none."""
        config, factor = self.denoiser.config, self.pixels_per_latent
        patch = self.patch or config.get("patch_size")
        # Position embeddings may be cropped from a map of this size.
        limit = patch * config["pos_embed_max_size"] if config.get("pos_embed_max_size") else _LARGEST_LATENT
        side = image_size // factor
        if not 1 <= side <= limit or (patch and image_size % (factor * patch)):
            reason = f": its patches are {patch}x{patch} pixels of the latent" if patch and patch > 1 else ""
            raise InputError(
                f"{self.model} takes images of a multiple of {factor * (patch or 1)} px, at most {factor * limit}, not "
                f"{image_size} px{reason}; change the image size"
            )
        return self.latent_shape[0], side, side

    def encode(self, images: Tensor) -> Tensor:
        """Encode images: the posterior mean, shifted and scaled, or the pixels themselves without a VAE.

        `(b, 3, s, s)`, uint8 in [0, 255] -> `(b, c, h, w)`, float32.
        """
        pixels = images.float() / 127.5 - 1
        if self.vae is None:
            return pixels
        with mark("encoder", len(images)):
            latents: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean
        latents = latents.float()
        if shift := self.vae.config.get("shift_factor"):
            latents = latents - shift
        # The VAE may return channels-last memory; a latent read back from a cache must give the same results.
        return (latents * self.vae.config["scaling_factor"]).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, `(b, c, h, w)`, to images in [-1, 1] or a little outside, `(b, 3, s, s)`, all float32."""
        if self.vae is None:
            return latents
        scaled = latents / self.vae.config["scaling_factor"]
        if shift := self.vae.config.get("shift_factor"):
            scaled = scaled + shift
        scaled = scaled.to(self.vae.dtype)
        with mark("decoder", len(latents)):
            pixels: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return pixels.float()

    def tokens_of(self, height: int, width: int) -> int:
        """Return the number of image tokens of latents of this size, on which resolution-dependent shifts depend."""
        patch = self.patch or self.denoiser.config.get("patch_size") or 1
        return (height // patch) * (width // patch)

    def timestep_options(self, scheduler: Any, steps: int, latents: tuple[int, int, int]) -> dict[str, Any]:
        """Return further arguments of a scheduler's `set_timesteps`, as the model's pipeline passes them.

        `latents` are (channels, height, width).
        """
        mu = resolution_shift(scheduler.config, self.tokens_of(*latents[1:]))
        return {} if mu is None else {"mu": mu}

    def predict_target(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, target: Target) -> Tensor:
        """Estimate `target` from noisy latents. Arguments are those of `predict`; `timesteps` are those of trials."""
        return self.parametrisation.convert(self.predict(noisy, timesteps, condition), noisy, timesteps, target)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the network's output in its own parametrisation; learned variances are dropped.

        Latents `(b, c, h, w)`, timesteps in [0, 1000], possibly fractional, `(b,)`, and rows of `conditions`,
        `(b, ...)` -> `(b, c, h, w)`, float32.
        """
        parameter = next(self.denoiser.parameters())
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        with mark("denoiser", len(noisy)):
            output: Tensor = self._denoise(noisy.to(parameter.dtype, memory_format=layout), timesteps, condition)
        # A network with learned variance appends it to the noise.
        return output[:, : noisy.shape[1]].float()
