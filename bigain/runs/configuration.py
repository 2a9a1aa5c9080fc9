"""Configurations: shipped files by bare name, and the identity of a run."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from bigain.errors import InputError

# Settings of speed and place, which no number depends on.
_WITHOUT_EFFECT = {
    "data.init_args.batch_size",
    "data.init_args.num_workers",
    "data.init_args.on_bad_image",
    "model.init_args.latent_cache",
    "model.init_args.metrics",
    "model.init_args.backbone.init_args.local_files_only",
    "model.init_args.backbone.init_args.safetensors_only",
    "model.init_args.rows_per_forward",
    "model.init_args.items_per_forward",
}
# Numbers depend on these sections; of the trainer only on two settings.
_SECTIONS = ("seed", "model", "data", "compressor", "trainer.precision", "trainer.callbacks")
# PyYAML raises these, also in its constructors of dates, numbers and tagged values.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


def shipped_configs() -> Path:
    """Return the folder of the shipped configurations: inside a wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(args: Sequence[str]) -> list[str]:
    """Move files and class names to the front, so that options override them, and locate the shipped files.

    A name without a file here means the shipped file, also for `--model models/dit_xl_512.yaml`.
    """
    configs: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name not in ("--config", "-c", "--model", "--data", "--compressor") or (equals and name != "--config"):
            others.append(arg)
            continue
        target = configs if name in ("--config", "-c") else parts
        # An option without a value is left to the parser.
        values = [value] if equals else [*itertools.islice(rest, 1)]
        target += [name, *map(locate, values)]
    first = 1 if others[:1] == ["predict"] else 0
    return [*others[:first], *configs, *parts, *others[first:]]


def options_for(options: Sequence[str], own: Collection[str], marks: Collection[str]) -> list[str]:
    """Return the options of one part of a command without their marks, as in `--generation.data.limit 100`.

    Args:
        options: Command line of options and their values.
        own: The marks of this part; an option with a different mark is left out.
        marks: All marks.
    """
    kept: list[str] = []
    ours = True
    for option in options:
        text = option
        # A value follows its option.
        if option.startswith("--"):
            path = option.removeprefix("--").split(".")
            count = next((i for i, name in enumerate(path[:-1]) if name not in marks), len(path) - 1)
            ours, text = set(path[:count]) <= set(own), "--" + ".".join(path[count:])
        if ours:
            kept.append(text)
    return kept


def locate(name: str) -> str:
    """Return the path of the shipped file of this name unless there is one here; a file has to be valid YAML."""
    shipped = shipped_configs() / name
    path = shipped if shipped.is_file() and not Path(name).exists() else Path(name)
    if path.is_file():
        # The message of the argument parser does not name the file.
        load_yaml(path)
    return str(path)


class _UniqueKeyLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Rejects repeated keys, of which PyYAML would use the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merged keys (`<<`) are filled in, which may repeat keys.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_yaml(path: Path) -> Any:
    """Load a YAML file.

    Raises:
        InputError: If it is not YAML or repeats a key.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except _NOT_YAML as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def fingerprinted(config: Namespace) -> dict[str, Any]:
    """Return the settings that numbers depend on, flat."""
    kept: dict[str, Any] = {"bigain": version("bigain")}
    for section in _SECTIONS:
        _flatten(section, _plain(config.get(section)), kept)
    return {key: value for key, value in sorted(kept.items()) if key not in _WITHOUT_EFFECT}


def fingerprint(config: Namespace) -> str:
    """Return a hash of `fingerprinted`: runs of one hash have comparable numbers, image by image."""
    text = json.dumps(fingerprinted(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {key: _plain(item) for key, item in vars(value).items() if not key.startswith("__")}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', str(value))}"


def _flatten(key: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(f"{key}.{name}", item, into)
    else:
        into[key] = value
