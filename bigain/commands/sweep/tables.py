"""The runs behind one table of the paper or of your own, declared in `configs/tables/`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bigain.commands.configs import load_yaml, shipped_configs
from bigain.errors import InputError
from bigain.runs.schema import TASKS, Task, check

# Options that the sweep sets, or that have a key of their own.
_NOT_SET = ("config", "output", "baseline")


class _Cell(TypedDict):
    config: str
    dataset: str
    method: str


class Entry(_Cell, total=False):
    """`set` has fixed options, `vary` gives a run per value, `setting` names a fixed setting of the paper's table."""

    task: Task
    set: dict[str, Any]
    vary: dict[str, list[float]]
    setting: dict[str, float]


class _TableFile(TypedDict):
    backbone: str
    runs: list[Entry]


class TableFile(_TableFile, total=False):
    """Content of a table file; only a table of the paper has a number."""

    table: int


@dataclass(frozen=True)
class SweepRun:
    """One run, and its cell in the table.

    Attributes:
        config: Entry file, as after `--config`.
        overrides: Options that differ from the entry file, by dotted name.
        table: Number of the paper's table; None for any other table.
        backbone: In the paper `sd2` or `dit_xl_2_512`.
        dataset: In the paper `pets`, `imagenet100`, `imagenet1k` or `coco`.
        method: Name of the row.
        setting_name: What the table varies, e.g. `ratio`; None if it prints no setting.
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
        """Return the command line: `["--config", "pets_lgtm.yaml", "--compressor.ratio", "0.7"]`."""
        arguments = ["--config", self.config]
        for key, value in self.overrides.items():
            arguments += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return arguments


@dataclass(frozen=True)
class Sweep:
    """A table; `name` is its file's."""

    name: str
    content: TableFile

    def runs(self) -> list[SweepRun]:
        """Return every run, in the order of the file."""
        return [run for entry in self.content["runs"] for run in self._expand(entry)]

    def _expand(self, entry: Entry) -> Iterator[SweepRun]:
        cell = (self.content.get("table"), self.content["backbone"], entry["dataset"], entry["method"])
        fixed, task = entry.get("set", {}), entry.get("task", TASKS[0])
        for key, values in entry.get("vary", {}).items():
            for value in values:
                name = key.rpartition(".")[2]
                yield SweepRun(entry["config"], {**fixed, key: value}, *cell, name, float(value), task)
        for name, setting in entry.get("setting", {}).items():
            yield SweepRun(entry["config"], fixed, *cell, name, float(setting), task)
        if not {"vary", "setting"} & entry.keys():
            yield SweepRun(entry["config"], fixed, *cell, task=task)


def load_table(path_or_name: str | Path) -> Sweep:
    """Load a table file.

    Args:
        path_or_name: A file, or the name of a shipped table: `table4` or `table4.yaml`.

    Raises:
        InputError: If it does not exist or cannot be run.
    """
    shipped = shipped_configs() / "tables"
    files = (Path(path_or_name), shipped / f"{str(path_or_name).removesuffix('.yaml')}.yaml")
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        names = sorted((file.stem for file in shipped.glob("*.yaml")), key=lambda name: (len(name), name))
        raise InputError(f"no table {path_or_name}: expected a file, or one of {', '.join(names)}")
    content: TableFile = load_yaml(path)
    check(path, content, TableFile, "see docs/sweeps.md", "is not a table")
    if not content["runs"]:
        raise InputError(f"{path}: runs: expected at least one")
    for place, keys, known in (
        (str(path), content, TableFile),
        *((f"{path}, run {number}", entry, Entry) for number, entry in enumerate(content["runs"], 1)),
    ):
        for key in keys:
            if key not in known.__annotations__:
                raise InputError(f"{place}: unknown key {key}; expected {', '.join(known.__annotations__)}")
    for number, entry in enumerate(content["runs"], 1):
        _check_entry(f"{path}, run {number}", entry)
    return Sweep(path.stem, content)


def _check_entry(place: str, entry: Entry) -> None:
    fixed, vary, setting = entry.get("set", {}), entry.get("vary"), entry.get("setting")
    for option in _NOT_SET:
        if option in fixed:
            raise InputError(f"{place}: set: {option} cannot be set by a table; leave it out")
    if not Path(entry["config"]).is_file() and not (shipped_configs() / entry["config"]).is_file():
        raise InputError(f"{place}: config: {entry['config']} is neither a file nor a shipped configuration")
    if vary is not None and setting is not None:
        raise InputError(f"{place}: setting: give either vary or setting, not both")
    if vary is not None and (len(vary) != 1 or not all(vary.values())):
        raise InputError(f"{place}: vary: expected one option with a list of numbers, not {vary}")
    if setting is not None and len(setting) != 1:
        raise InputError(f"{place}: setting: expected one name with a number, not {setting}")
    for key in {*(vary or {})} & {*fixed}:
        raise InputError(f"{place}: vary: {key} is also in set")
