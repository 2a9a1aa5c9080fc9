"""Generated images as files: encodings, and names that ids decide."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from bigain.errors import InputError

ImageFormat = Literal["png", "jpeg100_truncate", "none"]

_SUFFIX = {"png": ".png", "jpeg100_truncate": ".jpg"}
# Zlib's fastest level: a third of the time for a tenth more bytes.
_PNG_LEVEL = 1
# File systems take names of 255 bytes, of which a suffix and a temporary one take some.
_LONGEST = 200
_KEPT = 160


def quantise(pixels: Tensor, image_format: ImageFormat) -> Tensor:
    """Decoded images in [-1, 1] to uint8: rounded, or truncated as the release does for `jpeg100_truncate`."""
    scaled = ((pixels.float() + 1) * 127.5).clamp(0, 255)
    return (scaled if image_format == "jpeg100_truncate" else scaled.round()).to(torch.uint8)


def encode_images(images: Tensor, image_format: ImageFormat) -> list[bytes]:
    """Encode images side by side.

    Args:
        images: `(b, 3, h, w)`, uint8 in [0, 255], on the CPU.
        image_format: `none` encodes nothing.

    Returns:
        b files, or none.
    """
    if image_format == "none":
        return []
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda image: _encode(image, image_format), images))


def decode_files(files: Sequence[bytes]) -> Tensor:
    """Decode files of one size. `(b, 3, h, w)`, uint8 in [0, 255]."""
    return torch.stack([pil_to_tensor(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read and decode files of one size. `(b, 3, h, w)`, uint8 in [0, 255].

    Raises:
        InputError: If one cannot be read; the message names it.
    """
    return torch.cat([_read(path) for path in paths])


def _read(path: Path) -> Tensor:
    try:
        return decode_files([path.read_bytes()])
    except (OSError, SyntaxError) as error:
        # Pillow raises the second for some broken PNG files.
        # Without the address of an object that Pillow names.
        told = str(error).partition(" <")[0]
        raise InputError(f"cannot read {path}: {told}; delete it and run the command that made it again") from error


def _encode(image: Tensor, image_format: ImageFormat) -> bytes:
    file = io.BytesIO()
    if image_format == "png":
        to_pil_image(image).save(file, "PNG", compress_level=_PNG_LEVEL)
    else:
        to_pil_image(image).save(file, "JPEG", quality=100)
    return file.getvalue()


def sample_path(folder: Path, image_id: str, image_format: ImageFormat) -> Path:
    """Where the image of an item goes: folders as in its id, whatever would lead outside is quoted."""
    suffix = _SUFFIX[image_format]
    *folders, name = [_safe(part) for part in image_id.split("/")]
    # Nor may a folder have the name of an image, or of one that is being written.
    folders = [part.replace(".", "%2E") if part.endswith((suffix, ".tmp")) else part for part in folders]
    return folder.joinpath(*folders, name + suffix)


def _safe(part: str) -> str:
    """A file name for part of an id. `quote` writes neither `%2E` nor a bare `%`, so distinct parts stay distinct."""
    quoted = quote(part, safe=" ")
    if quoted.strip(". ") == "":
        quoted = quoted.replace(".", "%2E") or "%"
    if len(quoted) <= _LONGEST:
        return quoted
    return f"{quoted[:_KEPT]}%-{hashlib.blake2b(part.encode(), digest_size=8).hexdigest()}"
