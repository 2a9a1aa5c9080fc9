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

TASKS = ("classification", "generation")

# Settings that change speed or place, never a number.
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
# What PyYAML raises, also of its constructors of dates, numbers and tagged values.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
# The parser copies what aliases repeat: a few lines would keep it busy for ever.
_MOST_ENTRIES = 100_000
# Of the trainer, only these enter a number.
_TRAINER = ("trainer.precision", "trainer.callbacks")
_SECTIONS = ("seed", "model", "data", "compressor")


def shipped_configs() -> Path:
    """Folder of the configurations that come with the package: inside a wheel, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(args: Sequence[str]) -> list[str]:
    """Put files and class names first, so that options override them wherever they stand, and find the shipped ones.

    A name that no file here has means the shipped file, also for `--model models/dit_xl_512.yaml`.
    """
    configs: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            # Without a value, the parser says so.
            configs += [arg, *(locate(value) for value in itertools.islice(rest, 1))]
        elif arg.startswith("--config="):
            configs.append("--config=" + locate(arg.removeprefix("--config=")))
        elif arg in ("--model", "--data", "--compressor"):
            parts += [arg, *(locate(value) for value in itertools.islice(rest, 1))]
        else:
            others.append(arg)
    first = 1 if others[:1] == ["predict"] else 0
    return [*others[:first], *configs, *parts, *others[first:]]


def options_for(options: Sequence[str], own: Collection[str], marks: Collection[str]) -> list[str]:
    """The options of one part of a command, unmarked: `--generation.data.limit 100` is meant for generation alone.

    Args:
        options: Command line of options and their values.
        own: The marks of this part; an option that bears another one is left out.
        marks: Every mark there is.
    """
    kept: list[str] = []
    meant = True
    for option in options:
        text = option
        if option.startswith("--"):
            borne, text = [], option.removeprefix("--")
            while text.partition(".")[0] in marks and "." in text:
                mark, _, text = text.partition(".")
                borne.append(mark)
            meant, text = set(borne) <= set(own), f"--{text}"
        # A value goes where its option goes.
        if meant:
            kept.append(text)
    return kept


def locate(name: str) -> str:
    """Return the path of the shipped file of this name unless there is one here; a file has to be valid YAML."""
    shipped = shipped_configs() / name
    path = shipped if shipped.is_file() and not Path(name).exists() else Path(name)
    if path.is_file():
        # The argument parser's own message does not name the file.
        load_yaml(path)
    return str(path)


class _OneOfEach(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses what is given twice under one key, of which PyYAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, since merged keys (`<<`) are there twice by right once they are filled in.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        InputError: If it is no YAML, gives something twice, or its aliases repeat each other without end.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OneOfEach)
        entries = _entries(content, {})
    except _NOT_YAML as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if entries > _MOST_ENTRIES:
        raise InputError(f"{path} has more than {_MOST_ENTRIES:,} entries with all that its aliases repeat; shorten it")
    return content


def _entries(value: Any, known: dict[int, int]) -> int:
    """How many entries a tree has once everything that aliases repeat is written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        # What holds itself has no end.
        known[id(value)] = _MOST_ENTRIES + 1
        known[id(value)] = 1 + sum(_entries(v, known) for v in (value.values() if isinstance(value, dict) else value))
    return known[id(value)]


def fingerprinted(config: Namespace) -> dict[str, Any]:
    """The settings that numbers depend on, flat."""
    kept: dict[str, Any] = {"bigain": version("bigain")}
    for section in _SECTIONS:
        _flatten(section, _plain(config.get(section)), kept)
    for key in _TRAINER:
        _flatten(key, _plain(config.get(key)), kept)
    return {key: value for key, value in sorted(kept.items()) if key not in _WITHOUT_EFFECT}


def fingerprint(config: Namespace) -> str:
    """Hash of `fingerprinted`: equal for runs whose numbers are comparable image by image."""
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
