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
# Numbers depend on these sections; of the trainer only on two settings.
_SECTIONS = ("seed", "model", "data", "compressor", "trainer.precision", "trainer.callbacks")


def fingerprinted(config: Namespace) -> dict[str, Any]:
    """Return the settings that numbers depend on, flat."""
    settings: dict[str, Any] = {"bigain": version("bigain")}
    for section in _SECTIONS:
        _flatten(section, _plain(config.get(section)), settings)
    return {key: value for key, value in sorted(settings.items()) if key not in _WITHOUT_EFFECT}


def fingerprint(config: Namespace) -> str:
    """Return a hash of `fingerprinted`: runs of one hash have comparable numbers, image by image."""
    text = json.dumps(fingerprinted(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return _plain({key: item for key, item in vars(value).items() if not key.startswith("__")})
    if isinstance(value, dict):
        plain = {str(key): _plain(item) for key, item in value.items()}
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
