"""The directory of a run: whether a run can start or continue there, and what it may delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.errors import InputError
from bigain.runs.configuration import fingerprinted
from bigain.runs.files import RUN_FILES, read_json, write_json
from bigain.runs.lock import lock
from bigain.runs.schema import CHOOSE_IMAGES


def prepare_directory(output: Path, config: Namespace) -> BaseFileLock:
    """Make a run directory ready to start or continue.

    Returns:
        A lock on it, to be released at the end of the run.

    Raises:
        InputError: If it holds a run of another configuration or other files, or another process runs there.
    """
    check_directory(output, config)
    try:
        output.mkdir(parents=True, exist_ok=True)
        held = lock(output, 0)
        # The process that held the lock before may have started a different run.
        check_directory(output, config)
        known = (output / "identity.json").is_file()
        if known and config.overwrite:
            for path in [path for pattern in RUN_FILES for path in output.glob(pattern)]:
                path.unlink(missing_ok=True)
        # An extension writes it later: as long as the run can be refused, the finished images keep their identity.
        if not config.extend or not known:
            write_json(output / "identity.json", fingerprinted(config))
    except OSError as error:
        raise InputError(f"cannot write the run directory {output}: {error}; choose another --output") from error
    return held


class Extension(Callback):
    """Gives a run directory its new choice of images, once the dataset has found these images."""

    def __init__(self, config: Namespace) -> None:
        """Store the configuration, as for `prepare_directory`."""
        self._settings = fingerprinted(config)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / "identity.json", self._settings)


def check_directory(output: Path, config: Namespace) -> None:
    """Make sure that a run can start or continue in a directory. Nothing is written.

    Raises:
        InputError: If it holds a run of another configuration or other files, or the options contradict each other.
    """
    identity = output / "identity.json"
    if config.extend and config.overwrite:
        raise InputError("--extend true keeps the finished images, --overwrite true deletes them; give one of them")
    if not identity.is_file():
        # Names with a dot are locks, and temporary files of a run that was killed.
        if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise InputError(f"{output} exists and is not a run directory of bigain; choose another --output")
        return
    if config.overwrite:
        return
    settings = fingerprinted(config)
    before = read_json(identity, dict[str, Any], "choose another --output, or --overwrite true")
    changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    only_images = CHOOSE_IMAGES.issuperset(changed)
    if config.extend and only_images:
        return
    # A run that was refused before its first image holds nothing worth keeping.
    if changed and any(path.stat().st_size for path in output.glob("predictions/rank-*.jsonl")):
        changes = "; ".join(f"{key}: {before.get(key)} -> {settings.get(key)}" for key in changed[:5])
        keep = ", --extend true to keep the finished images among these" if only_images else ""
        raise InputError(
            f"{output} holds a run with another configuration ({changes}); choose another --output{keep}, or "
            "--overwrite true to delete it"
        )
