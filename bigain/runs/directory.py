"""The directory of a run: whether a run can start or continue there, and what it may delete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from bigain.errors import InputError
from bigain.runs.configuration import fingerprinted
from bigain.runs.files import RUN_FILES, SUFFIXES, TEMPORARY_FILES, read_json, sample_path, write_json
from bigain.runs.lock import lock
from bigain.runs.logs import finished_images
from bigain.runs.results import has_results, read_ids
from bigain.runs.schema import CHOOSE_IMAGES


@contextmanager
def run_directory(output: Path, config: Namespace) -> Iterator[None]:
    """Hold a run directory in which a run starts or continues.

    A run that ends with an error before its first image leaves no directory behind.

    Raises:
        InputError: If it holds a run of another configuration or other files, or another process runs there.
    """
    check_directory(output, config)
    try:
        output.mkdir(parents=True, exist_ok=True)
        directory_lock = lock(output, 0)
        # The process that held the lock before may have started a different run.
        check_directory(output, config)
        if config.overwrite:
            _delete(own_files(output))
    except OSError as error:
        raise InputError(f"cannot write the run directory {output}: {error}; choose another --output") from error
    try:
        write_json(output / "identity.json", fingerprinted(config))
        yield
    except BaseException:
        if not (has_results(output) or any(path.stat().st_size for path in output.glob("predictions/*.jsonl"))):
            _delete([*own_files(output), *output.glob(".lock-*")])
            for folder in (*sorted((path for path in output.rglob("*") if path.is_dir()), reverse=True), output):
                # A folder that holds other files stays.
                with suppress(OSError):
                    folder.rmdir()
        raise
    finally:
        directory_lock.release()


def own_files(output: Path) -> list[Path]:
    """Return the files in a run directory that bigain wrote; of the images, those of the run's items."""
    ids: set[str] = set()
    # Damaged files are deleted, too.
    with suppress(InputError):
        ids.update(read_ids(output))
    with suppress(InputError):
        ids.update(finished_images(output / "predictions"))
    images = [sample_path(output, image_id, kind) for image_id in ids for kind in SUFFIXES]
    listed = [path for pattern in (*RUN_FILES, *TEMPORARY_FILES) for path in output.glob(pattern)]
    return [*listed, *(path for path in images if path.is_file())]


def _delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def check_directory(output: Path, config: Namespace) -> None:
    """Make sure that a run can start or continue in a directory. Nothing is written.

    Raises:
        InputError: If it holds a run of another configuration or other files, or the options contradict each other.
    """
    identity = output / "identity.json"
    if config.extend and config.overwrite:
        raise InputError("--extend true keeps the finished images, --overwrite true deletes them; give one of them")
    if not identity.is_file():
        # Names that begin with a dot are locks and temporary files of a killed run.
        if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise InputError(f"{output} exists and is not a run directory of bigain; choose another --output")
        return
    if config.overwrite:
        return
    settings = fingerprinted(config)
    previous = read_json(identity, dict[str, Any], "restore it from a backup, or choose another --output")
    changed = [key for key in {**previous, **settings} if previous.get(key) != settings.get(key)]
    only_images = CHOOSE_IMAGES.issuperset(changed)
    # A run that was refused before its first image holds nothing worth keeping.
    started = any(path.stat().st_size for path in output.glob("predictions/rank-*.jsonl"))
    if changed and started and not (config.extend and only_images):
        changes = "; ".join(f"{key}: {previous.get(key)} -> {settings.get(key)}" for key in changed[:5])
        keep = ", --extend true to keep the finished images among these" if only_images else ""
        raise InputError(
            f"{output} holds a run with another configuration ({changes}); choose another --output{keep}, or "
            "--overwrite true to delete it"
        )
