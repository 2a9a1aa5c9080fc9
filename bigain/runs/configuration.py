"""The identity of a run: the settings of its configuration that numbers depend on."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

# Settings of speed and location, which no number depends on.
_WITHOUT_EFFECT = {
    "data.init_args.batch_size",
    "data.init_args.num_workers",
    "data.init_args.on_bad_image",
    "model.init_args.latent_cache",
    "model.init_args.metrics",
    "model.init_args.backbone.init_args.local_files_only",
    "model.init_args.backbone.init_args.safetensors_only",
    "model.init_args.backbone.init_args.cuda_graph",
    "model.init_args.rows_per_forward",
    "model.init_args.items_per_forward",
}
# Settings that were added later: left out at this value, so that earlier runs keep their identity.
_LATER = {
    "model.init_args.backbone.init_args.variant": None,
    "model.init_args.noises": 1,
    "model.init_args.bands": None,
    "model.init_args.weights": "uniform",
    "data.init_args.classes": None,
    "data.init_args.train": False,
}
# The same for arguments of compressors, wherever they appear.
_LATER_ARGUMENTS = (
    *(("skip_zero", False), ("quantile_of", "cells"), ("source_quantile", None), ("aligned", False)),
    *(("position", "destination"), ("during", None), ("proportional", False)),
)
# Earlier, ABM had no score, but other methods did.
_ABM_SCORE = "bigain.tokens.scores.laplacian_l1"
# Numbers depend on these sections; of the trainer only on two settings.
_SECTIONS = ("seed", "model", "data", "compressor", "trainer.precision", "trainer.callbacks")


def fingerprinted(config: Namespace) -> dict[str, Any]:
    """Return the settings that numbers depend on, flat."""
    settings: dict[str, Any] = {"bigain": version("bigain")}
    for section in _SECTIONS:
        _flatten(section, _plain(config.get(section)), settings)
    at_default = {key for key, value in _LATER.items() if settings.get(key) == value}
    return {key: value for key, value in sorted(settings.items()) if key not in _WITHOUT_EFFECT | at_default}


def fingerprint(config: Namespace) -> str:
    """Return a hash of `fingerprinted`: runs of one hash have comparable numbers, image by image."""
    text = json.dumps(fingerprinted(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return _plain({key: item for key, item in vars(value).items() if not key.startswith("__")})
    if isinstance(value, dict):
        plain = {str(key): _plain(item) for key, item in value.items() if (key, item) not in _LATER_ARGUMENTS}
        arguments: Any = plain.get("init_args")
        if str(plain.get("class_path")).endswith(".ABM") and arguments.get("score") == _ABM_SCORE:
            del arguments["score"]
        # Masks that are made again under the same name change the identity.
        if isinstance(masks := plain.get("masks"), str) and (file := Path(masks).expanduser()).is_file():
            plain["masks"] = f"{masks} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        return plain
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', str(value))}"


def _flatten(key: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(f"{key}.{name}", item, flat)
    else:
        flat[key] = value
