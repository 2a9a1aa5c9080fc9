"""The runs behind one table, of the paper or of your own, declared in `configs/tables/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigain.commands.configs import load_yaml, shipped_configs
from bigain.errors import InputError
from bigain.runs.schema import TASKS

_TABLE: dict[str, type] = {"backbone": str, "runs": list}
# Only a table of the paper has a number.
_NUMBER: dict[str, type] = {"table": int}
_ENTRY: dict[str, type] = {"config": str, "dataset": str, "method": str}
# No setting is near it, and beyond there is neither NaN nor what a float cannot hold.
_LARGEST = 1e18
_SAID: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "names with values"}
# Options that the sweep gives, or that each run of a table has a key for.
_NOT_SET = ("config", "output", "baseline")
# `set` is fixed; `vary` gives a run per value; `setting` says what the table calls a fixed setting; `task` is
# classification unless it says generation.
_OPTIONS: dict[str, type] = {"set": dict, "vary": dict, "setting": dict, "task": str}


@dataclass(frozen=True)
class SweepRun:
    """One run, and the cell of the table that it belongs to.

    Attributes:
        config: Entry file, as after `--config`.
        overrides: Options that differ from the entry file, by dotted name.
        table: Number of the paper's table; None for another table.
        backbone: In the paper `sd2` or `dit_xl_2_512`.
        dataset: In the paper `pets`, `imagenet100`, `imagenet1k` or `coco`.
        method: The row's name.
        setting_name: What the table varies, e.g. `ratio`; None where it prints no setting.
        setting: Its value.
        task: `classification` or `generation`.
    """

    config: str
    overrides: Mapping[str, Any]
    table: int | None
    backbone: str
    dataset: str
    method: str
    setting_name: str | None = None
    setting: float | None = None
    task: str = TASKS[0]

    def arguments(self) -> list[str]:
        """Command line: `["--config", "pets_lgtm.yaml", "--compressor.ratio", "0.7"]`."""
        found = ["--config", self.config]
        for key, value in self.overrides.items():
            found += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return found


@dataclass(frozen=True)
class Sweep:
    """A table; `name` is its file's, `table` its number in the paper, `entries` are the `runs` of the file."""

    name: str
    table: int | None
    backbone: str
    entries: tuple[Mapping[str, Any], ...]

    def runs(self) -> list[SweepRun]:
        """Every run, in the order of the file."""
        return [run for entry in self.entries for run in self._expand(entry)]

    def _expand(self, entry: Mapping[str, Any]) -> list[SweepRun]:
        cell = (self.table, self.backbone, entry["dataset"], entry["method"])
        fixed, task = entry.get("set", {}), entry.get("task", TASKS[0])
        if "vary" not in entry:
            settings = ((name, float(value)) for name, value in entry.get("setting", {}).items())
            name, setting = next(settings, (None, None))
            return [SweepRun(entry["config"], fixed, *cell, name, setting, task)]
        ((key, values),) = entry["vary"].items()
        name = key.rpartition(".")[2]
        return [SweepRun(entry["config"], {**fixed, key: value}, *cell, name, float(value), task) for value in values]


def load_table(path_or_name: str | Path) -> Sweep:
    """Read a table file.

    Args:
        path_or_name: A file, or the name of a shipped table: `table4` or `table4.yaml`.

    Raises:
        InputError: If it does not exist or says something that cannot be run.
    """
    path = _locate(Path(path_or_name))
    given = load_yaml(path)
    _check_keys(str(path), given, _TABLE, _NUMBER)
    if not given["runs"]:
        raise InputError(f"{path}: runs: expected at least one")
    for number, entry in enumerate(given["runs"], 1):
        _check_entry(f"{path}, run {number}", entry)
    return Sweep(path.stem, given.get("table"), given["backbone"], tuple(given["runs"]))


def _locate(given: Path) -> Path:
    shipped = shipped_configs() / "tables"
    for path in (given, shipped / f"{str(given).removesuffix('.yaml')}.yaml"):
        if path.is_file():
            return path
    names = sorted((path.stem for path in shipped.glob("*.yaml")), key=lambda name: (len(name), name))
    raise InputError(f"no table {given}: expected a file, or one of {', '.join(names)}")


def _check_entry(place: str, entry: Any) -> None:
    _check_keys(place, entry, _ENTRY, _OPTIONS)
    if entry.get("task", TASKS[0]) not in TASKS:
        raise InputError(f"{place}: task: expected {' or '.join(TASKS)}, found {entry['task']!r}")
    for option in ("set", "vary", "setting"):
        if not all(isinstance(key, str) for key in entry.get(option, {})):
            raise InputError(f"{place}: {option}: expected names, found {entry[option]}")
    for option in _NOT_SET:
        if option in entry.get("set", {}):
            raise InputError(f"{place}: set: {option} is not for a table to set; leave it out")
    if not Path(entry["config"]).is_file() and not (shipped_configs() / entry["config"]).is_file():
        raise InputError(f"{place}: config: {entry['config']} is neither a file nor a shipped configuration")
    vary, setting = entry.get("vary"), entry.get("setting")
    if vary is not None and setting is not None:
        raise InputError(f"{place}: setting: give either vary or setting, not both")
    if vary is not None and (len(vary) != 1 or not all(_are_numbers(values) for values in vary.values())):
        raise InputError(f"{place}: vary: expected one option with a list of numbers, found {vary}")
    if vary is not None and set(vary) & set(entry.get("set", {})):
        raise InputError(f"{place}: vary: {next(iter(vary))} is also in set")
    if setting is not None and (len(setting) != 1 or not _are_numbers(list(setting.values()))):
        raise InputError(f"{place}: setting: expected one name with a number, found {setting}")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _check_keys(place: str, given: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> None:
    """Raise an InputError unless `given` has exactly these keys, of these types."""
    known = {**required, **optional}
    if not isinstance(given, dict):
        raise InputError(f"{place}: expected the keys {', '.join(known)}, found {given!r}")
    for key in given:
        if key not in known:
            raise InputError(f"{place}: {key} is no key here; expected {', '.join(known)}")
        # Not isinstance: `true` would pass for a number.
        if type(given[key]) is not known[key]:
            raise InputError(f"{place}: {key}: expected {_SAID[known[key]]}, found {given[key]!r}")
    for key in required:
        if key not in given:
            raise InputError(f"{place}: {key} is missing")
