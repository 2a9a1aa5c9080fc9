"""The timed network and its inputs: real size, on the device, in the dtype."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from bigain.backbones.base import Backbone
from bigain.backbones.cuda_graphs import graphs_note, graphs_of, use_graphs
from bigain.backbones.geometry import with_denoiser
from bigain.backbones.loading import ModelFiles, find_model
from bigain.commands.flops.model import CountedModel
from bigain.cost.environment import attention_backend
from bigain.errors import InputError

_SEED = 0


@dataclass(frozen=True)
class Subject:
    """A network and the arguments of one forward.

    Attributes:
        backbone: Holds the denoiser.
        weights: `random`, or `loaded` from the model.
        noisy: `(b, c, h, w)`, float32.
        timesteps: `(b,)`.
        condition: `(b, ...)`.
        cuda_graph: Whether the copies that `twin` makes are replayed from CUDA graphs.
    """

    backbone: Backbone
    weights: str
    noisy: Tensor
    timesteps: Tensor
    condition: Tensor
    cuda_graph: bool = False

    @classmethod
    def of(
        cls, model: CountedModel, batch: int, dtype: torch.dtype, device: torch.device, channels_last: bool = False
    ) -> Subject:
        """Create a network of the sizes of `model`, and its inputs: the same ones every time.

        Raises:
            InputError: If weights cannot be loaded, or memory runs out.
        """
        folder, component = Path(find_model(model.source)), model.backbone.component
        loaded = any((folder / component).glob("*.safetensors"))
        try:
            if loaded:
                # Random networks are created on the device; loaded weights pass through the machine's memory.
                files = ModelFiles(str(folder), {component: type(model.backbone.denoiser)})
                denoiser = files.load(component, dtype).to(device)
            else:
                denoiser = random_denoiser(model.backbone.denoiser, dtype, device)
        except torch.OutOfMemoryError as error:
            raise InputError(f"{model.name} does not fit into the memory of {device}: {error}") from error
        denoiser = denoiser.eval().requires_grad_(False)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        denoiser.to(memory_format=layout)
        generator = torch.Generator().manual_seed(_SEED)
        noisy = torch.randn(batch, *model.latent, generator=generator).to(device, memory_format=layout)
        timesteps = torch.linspace(50, 950, batch).long().to(device)
        if model.condition.is_floating_point():
            condition = torch.randn(batch, *model.condition.shape[1:], generator=generator).to(dtype)
        else:
            condition = torch.arange(batch) % int(denoiser.config["num_embeds_ada_norm"])
        backbone = with_denoiser(model.backbone, denoiser)
        weights = "loaded" if loaded else "random"
        return cls(backbone, weights, noisy, timesteps, condition.to(device))

    def twin(self) -> Subject:
        """Return a copy with separate modules, for separate hooks and compiled code, that shares the weights."""
        original = self.backbone.denoiser
        memo = {id(tensor): tensor for tensor in (*original.parameters(), *original.buffers())}
        backbone = with_denoiser(self.backbone, copy.deepcopy(original, memo))
        if self.cuda_graph:
            use_graphs(backbone.denoiser)
        return replace(self, backbone=backbone)

    def forward(self) -> Tensor:
        """Run one forward. `(b, c, h, w)`, float32."""
        return self.backbone.predict(self.noisy, self.timesteps, self.condition)

    def first_forward(self) -> Tensor:
        """Run a forward; raise a RuntimeError if it should be replayed from a CUDA graph and cannot be."""
        output, denoiser = self.forward(), self.backbone.denoiser
        if self.cuda_graph and graphs_of(denoiser) is None:
            raise RuntimeError(f"CUDA graphs: {graphs_note(denoiser)}")
        return output

    @torch.inference_mode()
    def check(self, problem: str) -> tuple[str, bool]:
        """Run one forward; return the attention backend, and whether the output is finite.

        Raises:
            InputError: If it cannot run; the message begins with `problem`.
        """
        try:
            finite = bool(self.forward().isfinite().all())
        except RuntimeError as error:
            raise InputError(f"{problem}: {failure(error)}") from error
        return attention_backend(self.noisy.device, self.backbone.denoiser), finite


def failure(error: Exception) -> str:
    """Return kind and message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def random_denoiser(template: ModelMixin, dtype: torch.dtype, device: torch.device) -> ModelMixin:
    """Return a network of the same sizes with random weights, created on the device in its dtype.

    The global random state is restored.
    """
    default_dtype = torch.get_default_dtype()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(_SEED)
        try:
            torch.set_default_dtype(dtype)
            denoiser: ModelMixin = type(template).from_config(template.config)
        finally:
            torch.set_default_dtype(default_dtype)
    # Tensors from numpy are float32 regardless of the default. diffusers' own `to` warns about this call.
    nn.Module.to(denoiser, dtype)
    return denoiser


def find_device(name: str | None) -> torch.device:
    """Return a device by its name; None means a GPU if there is one.

    Raises:
        InputError: If it is not here, or times cannot be measured on it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device must be cpu, cuda or cuda:N, not {name!r}") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"times cannot be measured on {device}; device must be cpu, cuda or cuda:N")
    if (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no device {name} here; torch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", device.index or 0)
