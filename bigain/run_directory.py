"""The directory of a run: whether it can start or continue there, and what it may delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from bigain.configuration import fingerprinted
from bigain.errors import InputError
from bigain.files import replace_file


def prepare_directory(output: Path, config: Namespace) -> None:
    """Make a run directory ready to start or continue.

    Raises:
        InputError: If it holds a run of another configuration, or something else.
    """
    check_directory(output, config)
    identity = output / "identity.json"
    now = fingerprinted(config)
    if identity.is_file() and config.overwrite:
        _remove_run(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(now, indent=2) + "\n"
        replace_file(identity, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot write the run directory {output}: {error}; choose another --output") from error


def check_directory(output: Path, config: Namespace) -> None:
    """Make sure that a run can start or continue in a directory; nothing is written.

    Raises:
        InputError: If it holds a run of another configuration, or something else.
    """
    identity = output / "identity.json"
    if not identity.is_file() and output.is_dir() and any(output.iterdir()):
        raise InputError(f"{output} exists and is not a run directory of bigain; choose another --output")
    if identity.is_file() and not config.overwrite:
        _refuse_other(output, fingerprinted(config))


def _refuse_other(output: Path, now: dict[str, Any]) -> None:
    """Raise an InputError if finished images of another configuration are in a run directory."""
    identity = output / "identity.json"
    try:
        before = json.loads(identity.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{identity} is damaged ({error}); choose another --output, or --overwrite true") from error
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    # A run that was refused before its first image holds nothing worth protecting.
    if keys and any(path.stat().st_size for path in output.glob("predictions/rank-*.jsonl")):
        changes = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys[:5])
        raise InputError(
            f"{output} holds a run with another configuration ({changes}); choose another --output, or "
            "--overwrite true to delete it"
        )


def _remove_run(output: Path) -> None:
    """Delete what a run wrote, and nothing else."""
    written = [*output.glob("predictions/rank-*.jsonl"), output / "predictions/predictions.npz"]
    written += [*output.glob("tensorboard/events.out.tfevents.*"), output / "tensorboard/hparams.yaml"]
    written += [*output.glob("predictions/skipped-*.jsonl"), output / "predictions/classes.json"]
    written += [output / "contact_sheet.png", *output.glob("samples/**/*.png"), *output.glob("samples/**/*.jpg")]
    written += [output / name for name in ("results.json", "config.yaml", "identity.json", "images.txt")]
    for path in written:
        path.unlink(missing_ok=True)
