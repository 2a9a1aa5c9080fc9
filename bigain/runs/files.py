"""The files of a run directory: their names, and how they are written and read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from bigain.errors import InputError
from bigain.runs.schema import check

# What `bigain predict` writes into a run directory besides generated images. `--overwrite true` deletes these files.
RUN_FILES = (
    "results.json",
    "config.yaml",
    "identity.json",
    "images.txt",
    "contact_sheet.png",
    "frequency_response.json",
    "predictions/rank-*.jsonl",
    "predictions/skipped-*.jsonl",
    "predictions/predictions.npz",
    "predictions/features.safetensors",
    "predictions/classes.json",
    "predictions/model.json",
    "predictions/sessions.json",
    "pictures/curves_error_by_timestep.png",
    "pictures/curves_margin_by_class.png",
    "pictures/curves_stage_survival.png",
    "pictures/curves_confusion_matrix.png",
    "pictures/salience_image_[0-9]*.png",
    "pictures/scores_image_[0-9]*.png",
    "pictures/tokens_image_[0-9]*.png",
    "tensorboard/events.out.tfevents.*",
    "tensorboard/hparams.yaml",
)
# Suffixes of generated images, by format.
SUFFIXES = {"png": ".png", "jpeg100_truncate": ".jpg"}
# File systems allow names of 255 bytes, including the suffix and that of a temporary file.
_LONGEST = 200
_PREFIX = 160
# Files that a killed process was writing: see `replacing`.
_TEMPORARY = ".*.[0-9]*.tmp"
TEMPORARY_FILES = (_TEMPORARY, f"predictions/{_TEMPORARY}", f"samples/**/{_TEMPORARY}", f"pictures/{_TEMPORARY}")


def sample_path(run: Path, image_id: str, image_format: str) -> Path:
    """Return the path of an item's generated image: folders as in its id, parts that would leave `samples` quoted."""
    suffix = SUFFIXES[image_format]
    *folders, name = [_safe(part) for part in image_id.split("/")]
    # No folder may have the name of an image or of its temporary file.
    folders = [part.replace(".", "%2E") if part.endswith((suffix, ".tmp")) else part for part in folders]
    return run.joinpath("samples", *folders, name + suffix)


def _safe(part: str) -> str:
    """Return a file name for part of an id. `quote` never writes `%2E` or a bare `%`: distinct parts stay distinct."""
    quoted = quote(part, safe=" ")
    if quoted.strip(". ") == "":
        quoted = quoted.replace(".", "%2E") or "%"
    if len(quoted) <= _LONGEST:
        return quoted
    return f"{quoted[:_PREFIX]}%-{hashlib.blake2b(part.encode(), digest_size=8).hexdigest()}"


@contextmanager
def replacing(path: Path, advice: str = "what is finished is kept, run the command again") -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends without an error; its folder is created.

    Raises:
        InputError: If it cannot be written, for example because the disk is full.
    """
    # The process id keeps two processes that write the same file apart.
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on disk."""
    # Windows opens no folders.
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str, *advice: str) -> None:
    """Write a whole UTF-8 file or nothing, unless it has this content already: see `replacing`."""
    content = text.encode(errors="backslashreplace")
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_bytes(path, content, *advice)


def write_bytes(path: Path, content: bytes, *advice: str) -> None:
    """Write a whole file or nothing: see `replacing`."""
    with replacing(path, *advice) as file:
        file.write(content)


def write_json(path: Path, content: Any, *advice: str) -> None:
    """Write a whole indented JSON file or nothing: see `replacing`."""
    write_text(path, json.dumps(content, indent=2) + "\n", *advice)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole CSV file or nothing: see `replacing`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path, expected: Any, advice: str = "run the command that wrote it again") -> Any:
    """Load a JSON file that exists and check its content: see `bigain.runs.schema.check`.

    Raises:
        InputError: If it cannot be read, is not JSON or has content of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {advice}") from error
    check(path, content, expected, advice)
    return content


def find_reference(reference: str) -> Path:
    """Return the path of a reference file, or of the reference of the embedded extractor with this name."""
    embedded = Path(str(resources.files("bigain"))) / "assets" / reference / "reference.npz"
    return embedded if embedded.is_file() else Path(reference).expanduser()
