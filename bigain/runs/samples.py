"""File names of generated images from image ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

# In a run directory.
FOLDER = "samples"
# By format.
SUFFIXES = {"png": ".png", "jpeg100_truncate": ".jpg"}
# File systems allow names of 255 bytes, including the suffix and that of a temporary file.
_LONGEST = 200
_KEPT = 160


def sample_path(folder: Path, image_id: str, image_format: str) -> Path:
    """Return the path of an item's generated image: folders as in its id, parts that would leave `folder` quoted."""
    suffix = SUFFIXES[image_format]
    *folders, name = [_safe(part) for part in image_id.split("/")]
    # No folder may have the name of an image or of its temporary file.
    folders = [part.replace(".", "%2E") if part.endswith((suffix, ".tmp")) else part for part in folders]
    return folder.joinpath(*folders, name + suffix)


def _safe(part: str) -> str:
    """Return a file name for part of an id. `quote` never writes `%2E` or a bare `%`: distinct parts stay distinct."""
    quoted = quote(part, safe=" ")
    if quoted.strip(". ") == "":
        quoted = quoted.replace(".", "%2E") or "%"
    if len(quoted) <= _LONGEST:
        return quoted
    return f"{quoted[:_KEPT]}%-{hashlib.blake2b(part.encode(), digest_size=8).hexdigest()}"
