"""Check the files of a model before any weight is read: missing, damaged or foreign parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from bigain.backbones.base import Backbone, ModelFiles
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
    component_config(files.parts[name], source, name, True)
    return _inspect_weights(source, name, config.parent, backbone)


def _inspect_weights(source: str, name: str, folder: Path, backbone: Backbone) -> Finding:
    try:
        variant, paths = find_weights(folder, name, backbone.safetensors_only, backbone.variant)
    except InputError:
        if any(path.suffix in WEIGHTS for path in folder.iterdir()):
            raise
        variant = f".{backbone.variant}" if backbone.variant else ""
        return _missing(source, name, [f"{STEMS.get(name, STEM)['safetensors']}{variant}.safetensors"])
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        return _missing(source, name, missing)
    if paths[0].suffix == ".bin":
        return Finding(name, True, f"{paths[0].name}, a pickle, not inspected")
    for path in paths:
        damage = _damage(path)
        if damage:
            return Finding(name, False, f"{path} is damaged: {damage}", _fetch(source, [f"{name}/{path.name}"], True))
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


def _damage(path: Path) -> str:
    """Describe what is wrong with a safetensors file, from its header and size; empty if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            return f"{size} bytes without a complete header (a pointer of git-lfs, or cut short?)"
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, AttributeError, TypeError):
            return "its header does not describe tensors"
    end = 8 + length + max(ends, default=0)
    return "" if size == end else f"{size} bytes, but its header promises {end}"
