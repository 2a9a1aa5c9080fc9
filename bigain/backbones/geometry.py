"""Models without weights: shipped sizes of known ones, and networks on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin

from bigain.backbones.base import Backbone
from bigain.backbones.dit import DiT
from bigain.backbones.flux import Flux
from bigain.backbones.hub import read_json
from bigain.backbones.loading import UNLOADABLE, find_model, listed_class
from bigain.backbones.pixart import PixArt
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.backbones.stable_diffusion_3 import StableDiffusion3
from bigain.backbones.stable_diffusion_xl import StableDiffusionXL
from bigain.errors import InputError

# One folder per model in the diffusers format, with its sizes and no weights.
_FOLDER = Path(__file__).parent / "geometries"
_KINDS: tuple[type[Backbone], ...] = (PixArt, StableDiffusionXL, StableDiffusion3, Flux, StableDiffusion, DiT)


def shipped_geometries() -> dict[str, str]:
    """Return the hub id of every model whose sizes are shipped, by name."""
    folders = sorted(path.parent for path in _FOLDER.glob("*/model_index.json"))
    return {folder.name: read_json(str(folder), "model_index.json", True)["_name_or_path"] for folder in folders}


def geometry_of(model: str) -> str:
    """Return the folder of shipped sizes for a hub id that has one; any other model unchanged."""
    names = {source: name for name, source in shipped_geometries().items()}
    return str(_FOLDER / names[model]) if model in names else model


def backbone_without_weights(model: str) -> Backbone:
    """Build a model on the meta device.

    Args:
        model: Name of shipped sizes, such as `sd2`; a diffusers folder, which may lack its weights; the name of an
            embedded model; or a hub id.

    Raises:
        InputError: If there is no such model, or its kind is unknown.
    """
    # A folder of the same name counts only if it holds a model.
    shipped = model in shipped_geometries() and not (Path(model) / "model_index.json").is_file()
    source = str(_FOLDER / model) if shipped else find_model(geometry_of(model))
    index = read_json(source, "model_index.json", False)
    for kind in _KINDS:
        if _fits(kind, index):
            backbone = kind(source)
            build_on_meta(backbone)
            return backbone
    expected = " or ".join(f"{kind.component} ({kind.__name__})" for kind in _KINDS)
    raise InputError(f"model_index.json of {model} lists no {expected}; expected a model of one of these kinds")


def _fits(kind: type[Backbone], index: Mapping[str, Any]) -> bool:
    """Return whether a model is of a kind, or has its parts and another pipeline, which the class refuses by name."""
    network = listed_class(index, kind.component)
    if not kind.pipelines:
        return network is not None
    required = [name for name in kind.parts if name not in kind.optional and not name.startswith("tokenizer")]
    same_parts = network == kind.parts[kind.component].__name__ and all(listed_class(index, name) for name in required)
    return same_parts or index.get("_class_name") in kind.pipelines


def build_on_meta(backbone: Backbone) -> None:
    """Give a backbone its denoiser, and its VAE if it has one, on the meta device; load nothing else."""
    files = backbone.find()
    backbone.denoiser = on_meta(files.parts[backbone.component], backbone.denoiser_config(files))
    backbone.vae = on_meta(AutoencoderKL, files.config("vae")) if "vae" in files.parts else None


def without_weights(backbone: Backbone) -> Backbone:
    """Copy a backbone, with a denoiser of the same configuration on the meta device and no hooks.

    Changes to the denoiser after loading are not copied.
    """
    return with_denoiser(backbone, on_meta(type(backbone.denoiser), backbone.denoiser.config))


def with_denoiser(backbone: Backbone, denoiser: ModelMixin) -> Backbone:
    """Copy a backbone with a different denoiser and, of its other networks, only the VAE."""
    copied = copy.copy(backbone)
    # Otherwise both would share one dictionary of modules.
    copied.__dict__["_modules"] = {name: part for name, part in backbone.named_children() if name == "vae"}
    copied.denoiser = denoiser
    return copied


def on_meta(kind: Any, config: Any) -> Any:
    """Build a network without its weights; raise an InputError if the configuration is not one of this class."""
    try:
        with torch.device("meta"):
            if hasattr(kind, "config_class"):
                settings = kind.config_class.from_dict(config)
                # The configuration must not choose it: see `ModelFiles.load`.
                settings._attn_implementation = "sdpa"
                network = kind(settings)
            else:
                network = kind.from_config(config)
    except UNLOADABLE as error:
        raise InputError(f"config.json of a {kind.__name__} is invalid: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)
