"""`bigain evaluate`: one compressor on two or three tasks, and one row for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigain.commands.configs import load_yaml, locate, options_for
from bigain.commands.options import checked
from bigain.commands.parsing import Outcome
from bigain.commands.predict import predict, silence_libraries
from bigain.errors import InputError
from bigain.runs.files import write_csv, write_json
from bigain.runs.names import NOT_OF_ONE_STEP
from bigain.runs.results import read_results
from bigain.runs.schema import TASKS, Results


def evaluate(*options: str, config: Path, output: Path | None = None) -> Outcome:
    """Classify and generate with one compressor, and write one row for it to joint.csv and joint.json.

    Args:
        *options: Passed on to `bigain predict` for all tasks, or for one: --generation.data.limit 100
        config: File that names a configuration for `classification`, one for `generation` and, if wanted, one for
            `features`.
        output: Folder of the runs and the row; by default runs/<config>-<hash>.

    Returns:
        The summaries and the row, empty on all but the first process; complete if nothing is missing.

    Raises:
        InputError: If the configurations are wrong, or do not belong together.
    """
    path, configs = _read(config)
    digest = hashlib.sha256(json.dumps([configs, options]).encode()).hexdigest()[:8]
    folder = output or Path(f"runs/{path.stem}-{digest}")
    commands = {
        task: ["predict", "--config", name, *options_for(options, {task}, TASKS), "--output", str(folder / task)]
        for task, name in configs.items()
    }
    for command in commands.values():
        checked(command)
    # This imports torch.
    from bigain.commands.lightning_cli import Prepared

    silence_libraries()
    prepared = {task: Prepared.of(task, command) for task, command in commands.items()}
    shared_settings = {
        "models": [cli.model.backbone.model for cli in prepared.values()],
        "datasets": [cli.datamodule.name for cli in prepared.values()],
        "numbers of processes": [cli.trainer.world_size for cli in prepared.values()],
        "compressors": [[_comparable(c.description()) for c in cli.compressors()] for cli in prepared.values()],
    }
    for setting, values in shared_settings.items():
        if len(distinct := dict.fromkeys(map(str, values))) > 1:
            raise InputError(f"{path.stem} has different {setting}, {' and '.join(distinct)}; a joint row needs one")
    applicable = [task for task in commands if not prepared[task].not_applicable]
    outcomes = [predict(commands[task]) for task in applicable]
    complete = all(outcome.complete for outcome in outcomes)
    if not any(outcome.text for outcome in outcomes):
        return Outcome("", complete)
    row = joint_row(path.stem, *(read_results(folder / task) if task in applicable else None for task in TASKS))
    write_json(folder / "joint.json", row)
    write_csv(folder / "joint.csv", list(row), [row])
    return Outcome("".join(outcome.text for outcome in outcomes) + f"\njoint row  {folder / 'joint.csv'}\n", complete)


def _read(config: Path) -> tuple[Path, dict[str, str]]:
    """Return the path of the joint file, and the configuration of each task; files beside it come first."""
    path = Path(locate(str(config)))
    configs = load_yaml(path)
    if not isinstance(configs, dict) or not set(TASKS[:2]) <= set(configs) <= set(TASKS):
        raise InputError(
            f"{path}: expected a file that names a configuration for `classification`, one for `generation` and, if "
            "wanted, one for `features`"
        )
    sibling_files = {task: path.parent / str(configs[task]) for task in TASKS if task in configs}
    return path, {task: str(file if file.is_file() else configs[task]) for task, file in sibling_files.items()}


def joint_row(
    name: str, classification: Results | None, generation: Results | None, features: Results | None = None
) -> dict[str, Any]:
    """Return what one compressor costs and keeps.

    Without a classification, because the compressor is `generation_only`, the costs are those of the generation.
    """
    assert generation is not None
    costs = classification or generation
    compressors = costs["compressors"]
    accuracy_name, accuracy = next(iter(classification["metrics"].items())) if classification else ("top1", None)
    row: dict[str, Any] = {
        "name": name,
        "model": costs["model"]["name"],
        "dataset": costs["dataset"]["name"],
        "compressor": "+".join(compressor["class"] for compressor in compressors) or "none",
        "settings": json.dumps([compressor["settings"] for compressor in compressors]),
        accuracy_name: accuracy["value"] if accuracy else NOT_OF_ONE_STEP,
        f"{accuracy_name}_low": accuracy and accuracy["low"],
        f"{accuracy_name}_high": accuracy and accuracy["high"],
        "images_classified": classification["dataset"]["images"] if classification else 0,
        "gflops_per_evaluation": costs["flops"]["gflops_per_evaluation"],
        "flops_reduction_percent": costs["flops"]["reduction_percent"],
        "seconds_per_classification": classification and classification["timing"]["seconds_per_image"],
        "seconds_per_sample": generation["timing"]["seconds_per_image"],
        "images_generated": generation["dataset"]["images"],
    }
    row |= {metric: estimate["value"] for metric, estimate in generation["metrics"].items()}
    if features is not None:
        row["seconds_per_probe"] = features["timing"]["seconds_per_image"]
        row["images_probed"] = features["dataset"]["images"]
        for metric, estimate in features["metrics"].items():
            if "@" not in metric:
                row |= {metric: estimate["value"], f"{metric}_low": estimate["low"], f"{metric}_high": estimate["high"]}
    return row


def _comparable(compressor: Mapping[str, Any]) -> dict[str, Any]:
    """Return a compressor without alpha and `skip_zero`, which the paper, too, sets differently for the two tasks.

    Images have one class, so that redrawn destinations are random ones.
    """
    settings = {key: value for key, value in compressor["settings"].items() if key not in ("alpha", "skip_zero")}
    settings |= {"destination": "random"} if settings.get("destination") == "redrawn" else {}
    return {"class": compressor["class"], "settings": settings}
