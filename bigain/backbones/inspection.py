"""Check the files of a model before any weight is read: missing, damaged or foreign parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import on_meta
from bigain.backbones.loading import STEM, STEMS, WEIGHTS, ModelFiles, find_weights
from bigain.errors import InputError


class Finding(NamedTuple):
    """The result of a check; absent weights of a hub model may not be downloaded yet."""

    component: str
    ok: bool
    message: str
    fix: str = ""
    absent: bool = False


def inspect_model(backbone: Backbone) -> list[Finding]:
    """Load the settings of a backbone, and check the weights in the folder or in the hub's cache.

    One finding for model_index.json, one for the settings and one per network; only the first if the model cannot be
    found.
    """
    try:
        files = backbone.find()
    except InputError as error:
        return [Finding("model_index.json", False, str(error))]
    folder = Path(files.source)
    if not folder.is_dir():
        folder = Path(str(try_to_load_from_cache(files.source, "model_index.json"))).parent
    findings = [Finding("model_index.json", True, files.source)]
    try:
        backbone.load_settings(files)
        predicted = backbone.training_schedule.config.get("prediction_type", "a velocity of flow matching")
        findings.append(Finding("settings", True, f"fit together; the network predicts {predicted}"))
    except InputError as error:
        findings.append(Finding("settings", False, str(error)))
    for name in files.parts:
        if not name.startswith("tokenizer"):
            try:
                findings.append(_inspect_weights(files, folder / name))
            except InputError as error:
                findings.append(Finding(name, False, str(error)))
    return findings


def _inspect_weights(files: ModelFiles, folder: Path) -> Finding:
    name = folder.name
    network = on_meta(files.parts[name], files.config(name))
    if not any(path.suffix in WEIGHTS or ".index." in path.name for path in folder.iterdir()):
        stem = ".".join(filter(None, [STEMS.get(name, STEM)["safetensors"], files.variant]))
        return _missing(files, name, [f"{stem}.safetensors"])
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
