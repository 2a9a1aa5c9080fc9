"""Check the files of a model before any weight is read: missing, damaged or foreign parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import T5Tokenizer

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import on_meta
from bigain.backbones.loading import STEM, STEMS, WEIGHTS, ModelFiles, find_weights
from bigain.backbones.noise_schedule import load_schedule
from bigain.errors import InputError


class Finding(NamedTuple):
    """The result of checking one component; an absent file of a hub model may not be downloaded yet."""

    component: str
    ok: bool
    message: str
    fix: str = ""
    absent: bool = False


def inspect_model(backbone: Backbone) -> list[Finding]:
    """Check every file that loading needs, in the folder or in the hub's cache; never on the hub.

    One finding for model_index.json and one per component; only the first if the model cannot be found.
    """
    try:
        files = backbone.find(local_files_only=True)
    except InputError as error:
        return [Finding("model_index.json", False, str(error))]
    folder = Path(files.source)
    if not folder.is_dir():
        folder = Path(str(try_to_load_from_cache(files.source, "model_index.json"))).parent
    findings = [Finding("model_index.json", True, files.source)]
    for name in [*files.parts, "scheduler"]:
        try:
            findings.append(_inspect(backbone, files, folder / name))
        except InputError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def _inspect(backbone: Backbone, files: ModelFiles, folder: Path) -> Finding:
    name = folder.name
    kind = "tokenizer" if name.startswith("tokenizer") else name
    config_file = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(kind, "config.json")
    if not (folder / config_file).is_file():
        return _missing(files, name, [config_file])
    if name == "scheduler":
        settings = load_schedule(files, backbone.kinds)[1].config
        return Finding(name, True, f"predicts {settings.get('prediction_type', 'a velocity of flow matching')}")
    if kind == "tokenizer":
        vocabulary_files = ["spiece.model"] if files.parts[name] is T5Tokenizer else ["vocab.json", "merges.txt"]
        if (folder / "tokenizer.json").is_file() or all((folder / file).is_file() for file in vocabulary_files):
            return Finding(name, True, "has a vocabulary")
        return _missing(files, name, vocabulary_files)
    # This reads the VAE's configuration, too; if that is missing, the finding of the VAE says so.
    if name == backbone.component and ("vae" not in files.parts or (folder.parent / "vae/config.json").is_file()):
        backbone.denoiser_config(files)
    if not any(path.suffix in WEIGHTS or ".index." in path.name for path in folder.iterdir()):
        stem = ".".join(filter(None, [STEMS.get(name, STEM)["safetensors"], files.variant]))
        return _missing(files, name, [f"{stem}.safetensors"])
    network = on_meta(files.parts[name], files.config(name))
    variant, paths = find_weights(folder, name, files.safetensors_only, files.variant)
    if missing := [path.name for path in paths if not path.is_file()]:
        return _missing(files, name, missing)
    if paths[0].suffix == ".bin":
        return Finding(name, True, f"{paths[0].name}, a pickle, not inspected")
    shapes: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as tensors:
                # Releases of transformers differ in this prefix.
                for key in tensors.offset_keys():
                    shapes[key.removeprefix("text_model.")] = tensors.get_slice(key).get_shape()
        except (OSError, SafetensorError) as error:
            message = f"{path} is damaged, cut short or a pointer of git-lfs ({error})"
            return Finding(name, False, message, _fix(files, [f"{name}/{path.name}"], " --force-download"))
    for key, weight in network.state_dict().items():
        if (shape := shapes.get(key.removeprefix("text_model."), [*weight.shape])) != [*weight.shape]:
            message = f"{key} of {folder} has shape {shape}, but config.json gives it {[*weight.shape]}"
            return Finding(name, False, message, "copy weights and config.json of one model")
    # Only their number, because older files have other names.
    weights, expected = sum(map(math.prod, shapes.values())), sum(weight.numel() for weight in network.parameters())
    if weights < expected:
        return Finding(name, False, f"{folder} holds {weights:,} of the {expected:,} weights that config.json asks for")
    size = f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"
    return Finding(name, True, f"{size}, variant {variant}" if variant else size)


def _missing(files: ModelFiles, name: str, missing: list[str]) -> Finding:
    where = "the folder" if Path(files.source).is_dir() else "the hub's cache"
    paths = [f"{name}/{file}" for file in missing]
    return Finding(name, False, f"{', '.join(paths)} of {files.source} not in {where}", _fix(files, paths), absent=True)


def _fix(files: ModelFiles, paths: list[str], options: str = "") -> str:
    if Path(files.source).is_dir():
        return f"copy {' '.join(paths)} into {files.source} from where the model came from"
    return f"hf download {files.source} {' '.join(paths)}{options}"
