"""What is wrong with a model before any weight is read: missing, damaged or foreign parts, and a denoiser to try on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from huggingface_hub import try_to_load_from_cache

from bigain.backbones.base import Backbone
from bigain.backbones.loading import component_config, load_scheduler
from bigain.backbones.model_files import Found
from bigain.errors import InputError

_STEMS = {"text_encoder": "model"}
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# The format's own limit.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Finding:
    """What was found out about one component.

    Attributes:
        component: Folder name, or `model_index.json`.
        ok: Whether it can be loaded, as far as can be told without reading weights.
        message: What is there, or what is wrong.
        fix: What to do; empty where nothing is wrong or the message says it.
        absent: Whether a file is just not there, which on the hub only means not there yet.
    """

    component: str
    ok: bool
    message: str
    fix: str = ""
    absent: bool = False


def inspect_model(backbone: Backbone) -> list[Finding]:
    """Look at every file that loading needs, in the folder or in the hub's cache; never on the hub itself.

    Args:
        backbone: Loaded or not; it stays as it is.

    Returns:
        One finding for model_index.json and one per component; only the first if the model cannot be found.
    """
    try:
        found = backbone.find(local_files_only=True)
    except InputError as error:
        return [Finding("model_index.json", False, str(error))]
    findings = [Finding("model_index.json", True, found.source)]
    for name in [*found.parts, "scheduler"]:
        try:
            findings.append(_inspect(backbone, found, name))
        except InputError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def meta_denoiser(backbone: Backbone) -> ModelMixin:
    """Build the denoiser from its configuration on the meta device: all of its structure and none of its memory.

    Args:
        backbone: Loaded or not; it stays as it is.

    Raises:
        InputError: If its configuration cannot be read or is one of another kind of model.
    """
    found = backbone.find(backbone.local_files_only)
    config = backbone.denoiser_config(found, backbone.local_files_only)
    with torch.device("meta"):
        denoiser: ModelMixin = found.parts[backbone.component].from_config(config)
    return denoiser.eval().requires_grad_(False)


def build_on_meta(backbone: Backbone) -> None:
    """Give a backbone its denoiser, and its VAE where it has one, on the meta device; nothing else of it is loaded.

    Raises:
        InputError: If a configuration cannot be read or is one of another kind of model.
    """
    found = backbone.find(backbone.local_files_only)
    backbone.denoiser = meta_denoiser(backbone)
    backbone.vae = None
    if "vae" in found.parts:
        config = component_config(AutoencoderKL, found.source, "vae", backbone.local_files_only)
        with torch.device("meta"):
            backbone.vae = AutoencoderKL.from_config(config)


def without_weights(backbone: Backbone) -> Backbone:
    """Copy a backbone, with a denoiser of the same configuration on the meta device and no hooks.

    What was changed about its denoiser after loading is not in the copy.
    """
    twin = copy.copy(backbone)
    # The copy would share the original's table of modules.
    twin.__dict__["_modules"] = {}
    with torch.device("meta"):
        denoiser: ModelMixin = type(backbone.denoiser).from_config(backbone.denoiser.config)
    twin.denoiser = denoiser.eval().requires_grad_(False)
    return twin


def _inspect(backbone: Backbone, found: Found, name: str) -> Finding:
    source = found.source
    needed = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(name, "config.json")
    if _local(source, f"{name}/{needed}") is None:
        return _missing(source, name, [needed])
    if name == "scheduler":
        return Finding(name, True, f"predicts {load_scheduler(source, True).config['prediction_type']}")
    if name == "tokenizer":
        if any(all(_local(source, f"{name}/{file}") for file in files) for files in _VOCABULARIES):
            return Finding(name, True, "has a vocabulary")
        return _missing(source, name, list(_VOCABULARIES[1]))
    # It is compared with the VAE's, whose absence is a finding of its own.
    if name == backbone.component and ("vae" not in found.parts or _local(source, "vae/config.json")):
        backbone.denoiser_config(found, local_files_only=True)
    component_config(found.parts[name], source, name, True)
    return _inspect_weights(source, name, backbone.safetensors_only)


def _inspect_weights(source: str, name: str, safetensors_only: bool) -> Finding:
    stem = _STEMS.get(name, "diffusion_pytorch_model")
    single, binary = f"{stem}.safetensors", "pytorch_model.bin" if stem == "model" else f"{stem}.bin"
    index = _local(source, f"{name}/{single}.index.json")
    if index is None and _local(source, f"{name}/{single}") is None and _local(source, f"{name}/{binary}"):
        fix = "convert it to safetensors, or set the backbone's safetensors_only to false" if safetensors_only else ""
        return Finding(name, not safetensors_only, f"{binary}, a pickle, not looked into", fix)
    files = [single] if index is None else _shards(index)
    paths = {file: _local(source, f"{name}/{file}") for file in files}
    absent = [file for file, path in paths.items() if path is None]
    if absent:
        return _missing(source, name, absent)
    for path in filter(None, paths.values()):
        damage = _damage(path)
        if damage:
            return Finding(name, False, f"{path} is damaged: {damage}", _fetch(source, [f"{name}/{path.name}"], True))
    return Finding(name, True, f"{sum(path.stat().st_size for path in paths.values() if path) / 1e6:.1f} MB")


def _missing(source: str, name: str, files: list[str]) -> Finding:
    where = "the folder" if Path(source).is_dir() else "the hub's cache"
    paths = [f"{name}/{file}" for file in files]
    return Finding(name, False, f"{', '.join(paths)} of {source} not in {where}", _fetch(source, paths), absent=True)


def _fetch(source: str, files: list[str], again: bool = False) -> str:
    if Path(source).is_dir():
        return f"copy {' '.join(files)} into {source} from where the model came from"
    return f"hf download {source} {' '.join(files)}{' --force-download' if again else ''}"


def _local(source: str, file: str) -> Path | None:
    """Where a file lies on this disk; None if it does not."""
    folder = Path(source)
    path = folder / file if folder.is_dir() else try_to_load_from_cache(source, file)
    return Path(path) if isinstance(path, (str, Path)) and Path(path).is_file() else None


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} does not list the shards of its weights ({error!r}); fetch it again") from error


def _damage(path: Path) -> str:
    """What is wrong with a safetensors file, from its header and size; empty if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            return f"{size} bytes without a complete header (a pointer of git-lfs, or cut short?)"
        try:
            end = 8 + length + max(_ends(json.loads(file.read(length))), default=0)
        except (ValueError, KeyError, AttributeError, TypeError):
            return "its header does not describe tensors"
    return "" if size == end else f"{size} bytes, where its header promises {end}"


def _ends(header: dict[str, Any]) -> Iterator[int]:
    return (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")
