"""`bigain evaluate`: one compressor on both tasks, and one row for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigain.commands.predict import predict, quieten
from bigain.commands.prepared import Prepared
from bigain.errors import InputError
from bigain.runs.configuration import find_config, load_yaml, options_for
from bigain.runs.files import write_csv, write_json
from bigain.runs.results import read_results
from bigain.runs.schema import TASKS, Results

_HELP = (
    "expected `bigain evaluate --config X [options]` with a file that names a configuration for `classification` and "
    "one for `generation`; options go to both, `--generation.data.limit 100` to one"
)


def evaluate(args: Sequence[str]) -> tuple[str, bool]:
    """Run `bigain evaluate`.

    Returns:
        The joint row as text, empty on all but the first process, and whether nothing is missing.

    Raises:
        InputError: If anything given cannot work.
    """
    if "--help" in args or "-h" in args:
        return f"{_HELP}\n", True
    path, configs, options, output = _parse(args)
    commands = {
        task: [
            "predict",
            "--config",
            configs[task],
            *options_for(options, {task}, TASKS),
            "--output",
            str(output / task),
        ]
        for task in TASKS
    }
    quieten()
    _refuse_unlike(path.stem, {task: Prepared.of(task, command) for task, command in commands.items()})
    told, complete = "", True
    for command in commands.values():
        outcome = predict(command)
        told += outcome.summary
        complete = complete and outcome.complete
    if not told:
        return "", complete
    row = joint_row(path.stem, *(read_results(output / task) for task in TASKS))
    write_json(output / "joint.json", row)
    write_csv(output / "joint.csv", list(row), [row])
    width = max(map(len, row))
    table = "".join(f"{name:<{width}}  {value}\n" for name, value in row.items() if value is not None)
    return f"{told}\n{table}joint row  {output / 'joint.csv'}\n", complete


def _refuse_unlike(name: str, parts: Mapping[str, Prepared]) -> None:
    """Raise an InputError, before anything is run, if two configurations make no joint row."""
    one, other = (parts[task] for task in TASKS)
    for what, a, b in (
        ("models", one.model.backbone.model, other.model.backbone.model),
        ("datasets", one.datamodule.name, other.datamodule.name),
    ):
        if a != b:
            raise InputError(f"{name}: the two configurations have other {what}, {a} and {b}; a joint row needs one")
    _refuse_other_compressors(name, _described(one), _described(other))


def _described(prepared: Prepared) -> list[dict[str, Any]]:
    """The compressors as results describe them."""
    return [compressor.description() for compressor in prepared.compressors()]


def _refuse_other_compressors(name: str, one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> None:
    if one != other and not _same_but_alpha(one, other):
        raise InputError(f"{name}: the two configurations have different compressors; a joint row needs one")


def joint_row(name: str, classification: Results, generation: Results) -> dict[str, Any]:
    """What one compressor costs and keeps, on both tasks.

    Raises:
        InputError: If the two runs were compressed differently.
    """
    _refuse_other_compressors(name, classification["compressors"], generation["compressors"])
    compressors = classification["compressors"]
    accuracy = next(iter(classification["metrics"].items()))
    row: dict[str, Any] = {
        "name": name,
        "model": classification["model"]["name"],
        "dataset": classification["dataset"]["name"],
        "compressor": "+".join(one["class"] for one in compressors) or "none",
        "settings": json.dumps([one["settings"] for one in compressors]),
        f"{accuracy[0]}": accuracy[1]["value"],
        f"{accuracy[0]}_low": accuracy[1]["low"],
        f"{accuracy[0]}_high": accuracy[1]["high"],
        "images_classified": classification["dataset"]["images"],
        "gflops_per_evaluation": classification["flops"]["gflops_per_evaluation"],
        "flops_reduction_percent": classification["flops"].get("reduction_percent"),
        "seconds_per_classification": classification["timing"]["seconds_per_image"],
        "seconds_per_sample": generation["timing"]["seconds_per_image"],
        "images_generated": generation["dataset"]["images"],
    }
    for metric, estimate in generation["metrics"].items():
        row[metric] = estimate["value"]
    return row


def _same_but_alpha(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """IE-KVD's alpha differs between the tasks in the paper, too; nothing else may."""
    return [_without_alpha(c) for c in one] == [_without_alpha(c) for c in other]


def _without_alpha(compressor: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in compressor["settings"].items() if key != "alpha"}
    return {"class": compressor["class"], "settings": kept}


def _parse(args: Sequence[str]) -> tuple[Path, dict[str, str], list[str], Path]:
    found = find_config(args)
    if len(found) < 2 or found[0] != "--config":
        raise InputError(_HELP)
    path, rest = Path(found[1]), list(_separate(found[2:]))
    if not path.is_file():
        raise InputError(f"no configuration {path}; {_HELP}")
    configs = load_yaml(path)
    if not isinstance(configs, dict) or set(configs) != set(TASKS):
        raise InputError(f"{path}: {_HELP}")
    beside = {task: path.parent / str(name) for task, name in configs.items()}
    located = {task: str(file) if file.is_file() else str(configs[task]) for task, file in beside.items()}
    output = None
    if "--output" in rest[:-1]:
        at = rest.index("--output")
        output = Path(rest[at + 1])
        rest = [*rest[:at], *rest[at + 2 :]]
    digest = hashlib.sha256(json.dumps([located, rest]).encode()).hexdigest()[:8]
    return path, located, rest, output or Path(f"runs/{path.stem}-{digest}")


def _separate(options: Sequence[str]) -> Iterator[str]:
    """`--output X` for `--output=X`."""
    for option in options:
        yield from option.split("=", 1) if option.startswith("--output=") else (option,)
