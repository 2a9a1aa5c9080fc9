"""The directory of a run: whether it can start or continue there, and what it may delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.runs.configuration import fingerprinted
from bigain.errors import InputError
from bigain.runs.files import replace_file
from bigain.runs.lock import lock
from bigain.runs.schema import CHOOSE_IMAGES


def prepare_directory(output: Path, config: Namespace) -> BaseFileLock:
    """Make a run directory ready to start or continue.

    Returns:
        A lock on it, to be released at the end of the run.

    Raises:
        InputError: If it holds a run of another configuration or something else, or another process runs there.
    """
    check_directory(output, config)
    identity = output / "identity.json"
    now = fingerprinted(config)
    try:
        output.mkdir(parents=True, exist_ok=True)
        held = lock(output, 0)
        # Whoever held it before may have begun another run meanwhile.
        check_directory(output, config)
        if identity.is_file() and config.overwrite:
            _remove_run(output)
        # What may yet be refused must not change whose the finished images are.
        if not config.extend or not identity.is_file():
            _write_identity(identity, now)
    except OSError as error:
        raise InputError(f"cannot write the run directory {output}: {error}; choose another --output") from error
    return held


class Extension(Callback):
    """Gives a run directory its new choice of images, once it is known that there are such images."""

    def __init__(self, config: Namespace) -> None:
        """Keep the configuration, as `prepare_directory` takes it."""
        self._now = fingerprinted(config)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            _write_identity(Path(trainer.default_root_dir) / "identity.json", self._now)


def _write_identity(identity: Path, now: dict[str, Any]) -> None:
    text = json.dumps(now, indent=2) + "\n"
    replace_file(identity, lambda path: path.write_text(text, encoding="utf-8"))


def check_directory(output: Path, config: Namespace) -> None:
    """Make sure that a run can start or continue in a directory; nothing is written.

    Raises:
        InputError: If it holds a run of another configuration, or something else, or the options contradict each other.
    """
    identity = output / "identity.json"
    if config.extend and config.overwrite:
        raise InputError("--extend true keeps what is there, --overwrite true deletes it; give one of them")
    # A name with a dot: a lock, or a file that was being written when a run was killed.
    if not identity.is_file() and output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise InputError(f"{output} exists and is not a run directory of bigain; choose another --output")
    if identity.is_file() and not config.overwrite:
        _refuse_other(output, fingerprinted(config), config.extend)


def _refuse_other(output: Path, now: dict[str, Any], extend: bool) -> None:
    """Raise an InputError if finished images of another configuration are in a run directory.

    Args:
        output: The run directory.
        now: Settings that numbers depend on.
        extend: Whether another choice of images is welcome.
    """
    identity = output / "identity.json"
    try:
        before = json.loads(identity.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError(f"expected settings by name, found a {type(before).__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{identity} is damaged ({error}); choose another --output, or --overwrite true") from error
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    choice_only = CHOOSE_IMAGES.issuperset(keys)
    if extend and choice_only:
        return
    # A run that was refused before its first image holds nothing worth protecting.
    if keys and any(path.stat().st_size for path in output.glob("predictions/rank-*.jsonl")):
        changes = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys[:5])
        keep = ", --extend true to keep what it has of these images" if choice_only else ""
        raise InputError(
            f"{output} holds a run with another configuration ({changes}); choose another --output{keep}, or "
            "--overwrite true to delete it"
        )


def _remove_run(output: Path) -> None:
    """Delete what a run wrote, and nothing else."""
    patterns = ["predictions/rank-*.jsonl", "predictions/skipped-*.jsonl", "samples/**/*.png", "samples/**/*.jpg"]
    patterns += ["tensorboard/events.out.tfevents.*", "pictures/*.png", "pictures/maps_*.npz"]
    written = [path for pattern in patterns for path in output.glob(pattern)]
    names = ["results.json", "config.yaml", "identity.json", "images.txt", "contact_sheet.png"]
    names += [
        "frequency_response.json",
        "predictions/predictions.npz",
        "predictions/classes.json",
        "predictions/model.json",
    ]
    written += [output / name for name in (*names, "tensorboard/hparams.yaml")]
    for path in written:
        path.unlink(missing_ok=True)
