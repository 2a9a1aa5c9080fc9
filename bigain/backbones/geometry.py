"""Models without weights: the shipped sizes of known ones, folders and hub ids."""

from __future__ import annotations

from pathlib import Path

from bigain.backbones.base import Backbone
from bigain.backbones.dit import DiT
from bigain.backbones.hub import read_json
from bigain.backbones.inspection import build_on_meta
from bigain.backbones.loading import find_model, listed_class
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.errors import InputError

# One folder per model in the diffusers format, with its sizes and no weights.
_FOLDER = Path(__file__).parent / "geometries"
_KINDS: tuple[type[Backbone], ...] = (StableDiffusion, DiT)


def shipped_geometries() -> dict[str, str]:
    """Hub id of every model whose sizes are shipped, by name."""
    names = sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))
    return {name: read_json(str(_FOLDER / name), "model_index.json", True)["_name_or_path"] for name in names}


def backbone_without_weights(model: str) -> Backbone:
    """Build a model on the meta device.

    Args:
        model: `sd2` or `dit_xl_2_512`, whose sizes are shipped; a diffusers folder, which may lack its weights; the
            name of an embedded model; or a hub id.

    Returns:
        A backbone with its denoiser, and its VAE where it has one, on the meta device.

    Raises:
        InputError: If there is no such model, or it is of a kind that is not known.
    """
    source = _source(model)
    index = read_json(source, "model_index.json", False)
    for kind in _KINDS:
        if listed_class(index, kind.component) is not None:
            backbone = kind(source)
            build_on_meta(backbone)
            return backbone
    wanted = " or ".join(f"{kind.component} ({kind.__name__})" for kind in _KINDS)
    raise InputError(f"model_index.json of {model} lists no {wanted}; expected a model of one of these kinds")


def geometry_of(model: str) -> str:
    """The folder of shipped sizes for a hub id that has one; anything else as it is."""
    names = {source: name for name, source in shipped_geometries().items()}
    return str(_FOLDER / names[model]) if model in names else model


def _source(model: str) -> str:
    # A folder without an index is some other folder that happens to have a model's name.
    if (Path(model) / "model_index.json").is_file():
        return model
    shipped = _FOLDER / model
    return str(shipped) if "/" not in model and shipped.is_dir() else find_model(geometry_of(model))
