"""The tables of `configs/tables/`, and your own: their cells, and which of them a command line selects."""

# Without postponed annotations: with them, TypedDict does not see which keys are required.
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from bigain.commands.configs import load_yaml, option_of, options_for, shipped_configs
from bigain.errors import InputError
from bigain.runs.schema import TASKS, Task, check

# Options that the sweep sets, or that have a key of their own.
_RESERVED = ("config", "output", "baseline")
# A dataset with such a name cannot mark options.
_SECTIONS = {"model", "data", "compressor", "trainer", "seed", "config"}


class Entry(TypedDict):
    """`set` has fixed options, `vary` gives a run per value, `setting` names a fixed setting of the paper's table."""

    config: str
    dataset: str
    method: str
    task: NotRequired[Task]
    set: NotRequired[dict[str, Any]]
    vary: NotRequired[dict[str, list[float]]]
    setting: NotRequired[dict[str, float]]


class TableFile(TypedDict):
    """Content of a table file; only a table of the paper has a number."""

    table: NotRequired[int]
    backbone: str
    runs: list[Entry]


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        config: Configuration file, as after `--config`.
        overrides: Options that differ from that file, by dotted name.
        dataset: In the paper `pets`, `imagenet100`, `imagenet1k` or `coco`.
        method: Name of the row.
        task: `classification` or `generation`.
        setting_name: What the table varies, e.g. `ratio`; None if it prints no setting.
        setting: Its value.
    """

    config: str
    overrides: Mapping[str, Any]
    dataset: str
    method: str
    task: str = TASKS[0]
    setting_name: str | None = None
    setting: float | None = None

    @property
    def name(self) -> str:
        """`classification-pets-LGTM-ratio-0.5`."""
        parts = [self.task, self.dataset, self.method]
        if self.setting_name is not None:
            parts += [self.setting_name, f"{self.setting:g}"]
        # Shells would expand `ToMe[SA+CA]`.
        return "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts)

    def arguments(self) -> list[str]:
        """Return the command line: `["--config", "pets_lgtm.yaml", "--compressor.ratio", "0.7"]`."""
        options = (option_of(key, value) for key, value in self.overrides.items())
        return ["--config", self.config, *itertools.chain.from_iterable(options)]


def load_table(path_or_name: str | Path) -> list[Cell]:
    """Load the cells of a table file, in order.

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
    _check_keys(str(path), content, TableFile)
    cells: dict[str, Cell] = {}
    for number, entry in enumerate(content["runs"], 1):
        _check_entry(f"{path}, run {number}", entry)
        row = entry["dataset"], entry["method"], entry.get("task", TASKS[0])
        for options, name, value in _settings(entry):
            cell = Cell(entry["config"], options, *row, name, value)
            if cells.setdefault(cell.name, cell) is not cell:
                raise InputError(f"{path}: two runs would be {cell.name}; give them other methods, or a setting each")
    return list(cells.values())


def _settings(entry: Entry) -> list[tuple[dict[str, Any], str | None, float | None]]:
    """Return the options of every run of an entry, and the setting that the table prints."""
    fixed = entry.get("set", {})
    runs = [(fixed, name, float(value)) for name, value in entry.get("setting", {}).items()]
    for key, values in entry.get("vary", {}).items():
        runs += [({**fixed, key: value}, key.rpartition(".")[2], float(value)) for value in values]
    return [*runs] or [(fixed, None, None)]


def _check_keys(location: str, content: Mapping[str, Any], expected: type) -> None:
    for key in content.keys() - expected.__annotations__:
        raise InputError(f"{location}: unknown key {key}; expected {', '.join(expected.__annotations__)}")


def _check_entry(location: str, entry: Entry) -> None:
    _check_keys(location, entry, Entry)
    for option in entry.get("set", {}).keys() & {*_RESERVED}:
        raise InputError(f"{location}: set: {option} cannot be set by a table; leave it out")
    if not Path(entry["config"]).expanduser().is_file() and not (shipped_configs() / entry["config"]).is_file():
        raise InputError(f"{location}: config: {entry['config']} is neither a file nor a shipped configuration")
    if len(entry.get("vary", {})) + len(entry.get("setting", {})) > 1:
        raise InputError(f"{location}: vary, setting: expected one option that varies, or one setting, not several")


def marked_options(cell: Cell, cells: Sequence[Cell], options: Sequence[str]) -> list[str]:
    """Return the options of one cell, of options that are for all cells or marked for a task or a dataset."""
    marks = {*TASKS, *(other.dataset for other in cells)} - _SECTIONS
    return options_for(options, {cell.task, cell.dataset}, marks)


def choose(cells: Sequence[Cell], methods: Sequence[str] | None, shard: str | None) -> list[Cell]:
    """Return the cells of some methods, or of these the share of a shard.

    Args:
        cells: All cells of a table.
        methods: As the table names them, in any case; None selects all.
        shard: `3/16` selects every 16th from the third on; None selects all.

    Raises:
        InputError: If the table has no such method, or the shard is malformed.
    """
    names = {cell.method.lower(): cell.method for cell in cells}
    for method in methods or ():
        if method.lower() not in names:
            raise InputError(f"--only: the table has no method {method!r}; it has {', '.join(names.values())}")
    selected = names if methods is None else {method.lower() for method in methods}
    chosen = [cell for cell in cells if cell.method.lower() in selected]
    match = re.fullmatch(r"(\d+)/(\d+)", (shard or "1/1").strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/16, not {shard!r}")
    return chosen[int(match[1]) - 1 :: int(match[2])]
