"""Configuration files on the command line: shipped ones by bare name, and the options of each part of a command."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from bigain.commands.parsing import guess, options_of
from bigain.errors import InputError
from bigain.runs.schema import TASKS

# Folders of the shipped files for options that take a class.
_FOLDERS = {"--model": "models", "--data": "data", "--compressor": "compressors"}
_SUFFIXES = (".yaml", ".yml")
# PyYAML raises these, also in its constructors of dates, numbers and tagged values.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


def shipped_configs() -> Path:
    """Return the folder of the shipped configurations: inside a wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    bundled = package / "configs"
    return bundled if bundled.is_dir() else package.parent / "configs"


def find_config(args: Sequence[str]) -> list[str]:
    """Move files and class names to the front, so that options override them, and locate the shipped files.

    A name without a file here means the shipped file: `--model dit_xl_512.yaml`, or `models/dit_xl_512.yaml`. In place
    of an overlay, `--config as_released.yaml`, are the options that it sets, before those of the command line.
    """
    values, options = options_of(args)
    configs: list[str] = []
    classes: list[str] = []
    other_options: list[str] = []
    rules: list[dict[str, Any]] = []
    for option, *arguments in options:
        name, equals, value = option.partition("=")
        is_config = name in ("--config", "-c")
        if not is_config and (name not in _FOLDERS or equals):
            other_options += [option, *arguments]
            continue
        # An option without a value is left to the parser.
        files = [value, *arguments] if equals else arguments
        located = [locate(file, is_config, _FOLDERS.get(name, "")) for file in files[:1]]
        if is_config and located:
            content = load_yaml(Path(located[0]))
            if not isinstance(content, dict):
                raise InputError(f"{files[0]} is no configuration; expected sections such as model: and data:")
            keys = {*content}
            if "overlay" in keys:
                rules += content["overlay"]
                continue
            if keys and keys <= {*TASKS}:
                raise InputError(f"{files[0]} is a joint configuration; use bigain evaluate --config {files[0]}")
            if "class_path" in keys:
                raise InputError(f"{files[0]} describes one class; pass it with --model, --data or --compressor")
        (configs if is_config else classes).extend([name, *located, *files[1:]])
    settings = _classes_and_values([*configs, *classes, *other_options]) if rules else {}
    applied = [rule["set"] for rule in rules if all(_matches(settings.get(k), v) for k, v in rule["if"].items())]
    overlay_options = [word for changes in applied for key, value in changes.items() for word in option_of(key, value)]
    return [*values, *configs, *classes, *overlay_options, *other_options]


def option_of(key: str, value: Any) -> list[str]:
    """Return a setting as on the command line: `["--compressor.ratio", "0.7"]`."""
    return [f"--{key}", value if isinstance(value, str) else json.dumps(value)]


def _classes_and_values(args: Sequence[str]) -> dict[str, str]:
    """Return the settings of a command line by dotted name, the last value of each; that of a section is its class."""
    settings: dict[str, str] = {}
    for path, value in settings_of(args):
        name = path.removesuffix(".class_path")
        if settings.get(name, str(value)) != str(value):
            settings = {key: item for key, item in settings.items() if not key.startswith(f"{name}.")}
        settings[name] = str(value)
    return settings


def _matches(value: str | None, patterns: str | list[str]) -> bool:
    """Return whether a value, or the last part of an import path or folder, is one of these; a `*` is any text."""
    names = patterns if isinstance(patterns, list) else [patterns]
    return value is not None and any(fnmatchcase(value, form) for name in names for form in (name, f"*[./]{name}"))


def settings_of(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of all settings in a command line and its files, without `init_args`, and their values."""
    for option, *arguments in options_of(args)[1]:
        name, equals, text = option.removeprefix("--").partition("=")
        value: Any = text if equals else " ".join(arguments)
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value) if value.startswith("{") else value
        for path, setting in _flat("" if name in ("config", "-c") else name, value, Path()):
            yield path.replace(".init_args", "").removeprefix("."), setting


def _flat(name: str, value: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str) and value.endswith(_SUFFIXES) and (file := folder / value).is_file():
        value, folder = load_yaml(file), file.parent
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item, folder)
    else:
        yield name, value


def options_for(options: Sequence[str], part_marks: Collection[str], marks: Collection[str]) -> list[str]:
    """Return the options for a part of a command, without the marks of `--generation.data.limit 100`.

    Of all `marks`, only `part_marks` are of this part.
    """
    part_options: list[str] = []
    for option, *values in options_of(options)[1]:
        path = option.removeprefix("--").split(".")
        count = next((i for i, name in enumerate(path[:-1]) if name not in marks), len(path) - 1)
        if set(path[:count]) <= set(part_marks):
            part_options += ["--" + ".".join(path[count:]), *values]
    return part_options


def locate(name: str, is_file: bool = True, folder: str = "") -> str:
    """Return the path of the shipped file of this name, also in a folder of these, unless there is one here.

    Raises:
        InputError: If it is not YAML, or there is no such file and `is_file` or the suffix says that it is one.
    """
    shipped = [file for file in (shipped_configs() / name, shipped_configs() / folder / name) if file.is_file()]
    path = shipped[0] if shipped and not Path(name).exists() else Path(name).expanduser()
    if path.is_file():
        # The message of the argument parser does not name the file.
        load_yaml(path)
    elif is_file or path.suffix in _SUFFIXES:
        names = [str(file.relative_to(shipped_configs())) for file in shipped_configs().rglob("*.yaml")]
        raise InputError(
            f"no configuration {name} here or among the shipped ones"
            + (guess(get_close_matches(name, names, 3)) or "; see bigain list configs")
        )
    return str(path)


def load_yaml(path: Path) -> Any:
    """Load a YAML file; raise an InputError if it is not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
