"""Which files a backbone is made of: found, read and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import nn

from bigain.backbones.compilation import Compile, check_compile
from bigain.backbones.loading import component_config, find_model, listed_class, load_component, model_index
from bigain.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Found(NamedTuple):
    """Where a model is, and the class of each component to load, a VAE among them where the model has one."""

    source: str
    parts: dict[str, Any]


class ModelFiles(nn.Module):
    """A diffusers folder or hub model, before it is loaded.

    Attributes:
        component: Folder of the denoiser.
        parts: Class to load by folder, without VAE and scheduler, which are the same for all.
    """

    component: ClassVar[str]
    parts: ClassVar[dict[str, Any]]

    def __init__(
        self,
        model: str,
        dtype: Precision = "float32",
        local_files_only: bool = False,
        safetensors_only: bool = True,
        compile: Compile = "none",
        channels_last: bool = False,
    ) -> None:
        """Remember what to load; nothing heavy happens here.

        Args:
            model: Local diffusers folder, name of an embedded model (`shapes_dit`, `shapes_unet`) or hub id.
            dtype: Precision to load in. A true-half `trainer.precision` converts a float32 model later; loading in
                half at once saves the memory of the float32 copy.
            local_files_only: Never ask the hub. `HF_HUB_OFFLINE=1` does the same for everything.
            safetensors_only: Refuse weights in `.bin` files. They are pickles; if false, torch's weights-only loader
                reads them where there are no safetensors, and runs no code from them.
            compile: What torch compiles of the denoiser: `none`, `whole`, or `regional`, each transformer block by
                itself. Compiled code rounds differently.
            channels_last: Store images and convolutions channels last, which GPUs with tensor cores prefer.

        Raises:
            InputError: If `compile` is none of these.
        """
        super().__init__()
        self.model = model
        self.dtype = _DTYPES[dtype]
        self.local_files_only = local_files_only
        self.safetensors_only = safetensors_only
        # nn.Module has a method `compile`.
        self.compilation = check_compile(compile)
        self.channels_last = channels_last
        self.loaded = False

    @property
    def takes_text(self) -> bool:
        """Whether conditions are made from text; otherwise from classes."""
        return "text_encoder" in self.parts

    def find(self, local_files_only: bool) -> Found:
        """Find the model and its components, from its index alone.

        Args:
            local_files_only: Never ask the hub.

        Raises:
            InputError: If the model cannot be found or its index lists another kind of model.
        """
        source = find_model(self.model)
        index = model_index(source, self.parts, type(self).__name__, local_files_only)
        if listed_class(index, "vae") is None:
            return Found(source, self.parts)
        parts = {**self.parts, "vae": AutoencoderKL}
        model_index(source, parts, type(self).__name__, local_files_only)
        return Found(source, parts)

    def denoiser_config(self, found: Found, local_files_only: bool) -> dict[str, Any]:
        """Read the denoiser's configuration and refuse networks that need more than this class gives them.

        Args:
            found: Result of `find`.
            local_files_only: Never ask the hub.

        Raises:
            InputError: If it cannot be read or is one of another kind of model.
        """
        kind = self.parts[self.component]
        config = component_config(kind, found.source, self.component, local_files_only)
        if "vae" in found.parts:
            vae = component_config(AutoencoderKL, found.source, "vae", local_files_only)
            takes, gives = config.get("in_channels", 4), vae.get("latent_channels", 4)
            if takes != gives:
                raise InputError(
                    f"{self.component}/config.json of {self.model} has in_channels {takes}, but its VAE gives {gives}: "
                    "networks for inpainting, depth or editing take an image besides the noise; expected one that "
                    "takes the noise alone"
                )
        self._check(config)
        return config

    def _component(self, source: str, name: str, kind: Any) -> Any:
        return load_component(kind, source, name, self.dtype, self.local_files_only, self.safetensors_only)

    def _check(self, config: Mapping[str, Any]) -> None:
        """Raise an InputError if the denoiser's configuration is not one that this class can call."""
