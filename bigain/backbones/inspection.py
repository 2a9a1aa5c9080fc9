"""Check the files of a model before any weight is read: missing, damaged or foreign parts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from torch import nn

from bigain.backbones.base import Backbone, ModelFiles
from bigain.backbones.geometry import on_meta
from bigain.backbones.loading import STEM, STEMS, WEIGHTS, component_config, find_weights, load_scheduler
from bigain.errors import InputError

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# The format's own limit.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Finding:
    """The result of checking one component.

    Attributes:
        component: Folder name, or `model_index.json`.
        ok: Whether it can be loaded, as far as the files show without reading weights.
        message: Its size or kind, or what is wrong.
        fix: What to do; empty if nothing is wrong or the message says it.
        absent: Whether a file is missing; of a hub model it may not be downloaded yet.
    """

    component: str
    ok: bool
    message: str
    fix: str = ""
    absent: bool = False


def inspect_model(backbone: Backbone) -> list[Finding]:
    """Check every file that loading needs, in the folder or in the hub's cache; never on the hub.

    Args:
        backbone: Loaded or not; it is not changed.

    Returns:
        One finding for model_index.json and one per component; only the first if the model cannot be found.
    """
    try:
        files = backbone.find(local_files_only=True)
    except InputError as error:
        return [Finding("model_index.json", False, str(error))]
    findings = [Finding("model_index.json", True, files.source)]
    for name in [*files.parts, "scheduler"]:
        try:
            findings.append(_inspect(backbone, files, name))
        except InputError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def _inspect(backbone: Backbone, files: ModelFiles, name: str) -> Finding:
    source = files.source
    needed = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(name, "config.json")
    config = _local(source, f"{name}/{needed}")
    if config is None:
        return _missing(source, name, [needed])
    if name == "scheduler":
        _, scheduler = load_scheduler(source, True)
        return Finding(name, True, f"predicts {scheduler.config['prediction_type']}")
    if name == "tokenizer":
        if any(all(_local(source, f"{name}/{file}") for file in form) for form in _VOCABULARIES):
            return Finding(name, True, "has a vocabulary")
        return _missing(source, name, list(_VOCABULARIES[1]))
    # Reads the VAE's configuration, too; if that is missing, the VAE has its own finding.
    if name == backbone.component and ("vae" not in files.parts or _local(source, "vae/config.json")):
        backbone.denoiser_config(files, local_files_only=True)
    kind = files.parts[name]
    network = on_meta(kind, component_config(kind, source, name, True))
    return _inspect_weights(source, name, config.parent, backbone, network)


def _inspect_weights(source: str, name: str, folder: Path, backbone: Backbone, network: nn.Module) -> Finding:
    if not any(path.suffix in WEIGHTS or ".index." in path.name for path in folder.iterdir()):
        stem = ".".join(filter(None, [STEMS.get(name, STEM)["safetensors"], backbone.variant]))
        return _missing(source, name, [f"{stem}.safetensors"])
    variant, paths = find_weights(folder, name, backbone.safetensors_only, backbone.variant)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        return _missing(source, name, missing)
    if paths[0].suffix == ".bin":
        return Finding(name, True, f"{paths[0].name}, a pickle, not inspected")
    held: dict[str, list[int]] = {}
    for path in paths:
        try:
            held |= _shapes(path)
        except (OSError, ValueError) as error:
            return Finding(name, False, f"{path} is damaged: {error}", _fetch(source, [f"{name}/{path.name}"], True))
    # Releases of transformers differ in this prefix.
    shapes = {key.removeprefix("text_model."): shape for key, shape in held.items()}
    for key, weight in network.state_dict().items():
        if (shape := shapes.get(key.removeprefix("text_model."), [*weight.shape])) != [*weight.shape]:
            message = f"{key} of {folder} has shape {shape}, but config.json gives it {[*weight.shape]}"
            return Finding(name, False, message, "copy weights and config.json of one model")
    # By number, because older files have other names.
    numbers, needed = sum(map(math.prod, shapes.values())), sum(weight.numel() for weight in network.parameters())
    if numbers < needed:
        return Finding(name, False, f"{folder} holds {numbers:,} of the {needed:,} weights that config.json asks for")
    size = f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"
    return Finding(name, True, f"{size}, variant {variant}" if variant else size)


def _missing(source: str, name: str, files: list[str]) -> Finding:
    where = "the folder" if Path(source).is_dir() else "the hub's cache"
    paths = [f"{name}/{file}" for file in files]
    return Finding(name, False, f"{', '.join(paths)} of {source} not in {where}", _fetch(source, paths), absent=True)


def _fetch(source: str, files: list[str], again: bool = False) -> str:
    if Path(source).is_dir():
        return f"copy {' '.join(files)} into {source} from where the model came from"
    return f"hf download {source} {' '.join(files)}{' --force-download' if again else ''}"


def _local(source: str, file: str) -> Path | None:
    """Return the path of a file on this disk; None if it is missing."""
    folder = Path(source)
    path = folder / file if folder.is_dir() else try_to_load_from_cache(source, file)
    return Path(path) if isinstance(path, (str, Path)) and Path(path).is_file() else None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a safetensors file; raise a ValueError if header and size are not of one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"{size} bytes without a complete header (a pointer of git-lfs, or cut short?)")
        try:
            tensors = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
            end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
            shapes = {name: [int(side) for side in entry["shape"]] for name, entry in tensors.items()}
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ValueError("its header does not describe tensors") from error
    if size != end:
        raise ValueError(f"{size} bytes, but its header promises {end}")
    return shapes
