"""Generated images as files: encodings, and file names from image ids."""

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
# File systems allow names of 255 bytes, including the suffix and that of a temporary file.
_LONGEST = 200
_KEPT = 160


def quantise(pixels: Tensor, image_format: ImageFormat) -> Tensor:
    """Convert images in [-1, 1] to uint8: rounded, or for `jpeg100_truncate` truncated as in the paper's release."""
    # Contiguous, as images read from files: the last digits of features depend on the memory layout.
    scaled = ((pixels.float() + 1) * 127.5).clamp(0, 255).contiguous()
    return (scaled if image_format == "jpeg100_truncate" else scaled.round()).to(torch.uint8)


def encode_images(images: Tensor, image_format: ImageFormat) -> list[bytes]:
    """Encode images in parallel.

    Args:
        images: `(b, 3, h, w)`, uint8 in [0, 255], on the CPU.
        image_format: `none` encodes nothing.

    Returns:
        b files, or none.
    """

    def encode(image: Tensor) -> bytes:
        file = io.BytesIO()
        if image_format == "png":
            # Zlib's fastest level: a third of the time for a tenth more bytes.
            to_pil_image(image).save(file, "PNG", compress_level=1)
        else:
            to_pil_image(image).save(file, "JPEG", quality=100)
        return file.getvalue()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(encode, images)) if image_format != "none" else []


def decode_files(files: Sequence[bytes]) -> Tensor:
    """Decode files of images of equal size. `(b, 3, h, w)`, uint8 in [0, 255]."""
    return torch.stack([pil_to_tensor(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read and decode image files of equal size. `(b, 3, h, w)`, uint8 in [0, 255].

    Raises:
        InputError: If one cannot be read; the message names it.
    """
    images = []
    for path in paths:
        try:
            images.append(decode_files([path.read_bytes()]))
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some damaged PNG files.
            # Without the object and its address in Pillow's message.
            reason = str(error).partition(" <")[0]
            raise InputError(f"cannot read {path}: {reason}; delete it and run the command again") from error
    return torch.cat(images)


def sample_path(folder: Path, image_id: str, image_format: ImageFormat) -> Path:
    """Return the path of an item's generated image: folders as in its id, parts that would leave `folder` quoted."""
    suffix = _SUFFIX[image_format]
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
