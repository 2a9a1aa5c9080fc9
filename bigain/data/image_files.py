"""Generated images as files: encodings, and names that ids decide."""

from __future__ import annotations

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

ImageFormat = Literal["png", "jpeg100_truncate", "none"]

_SUFFIX = {"png": ".png", "jpeg100_truncate": ".jpg"}
# Zlib's fastest level: a third of the time for a tenth more bytes.
_PNG_LEVEL = 1


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


def _encode(image: Tensor, image_format: ImageFormat) -> bytes:
    file = io.BytesIO()
    if image_format == "png":
        to_pil_image(image).save(file, "PNG", compress_level=_PNG_LEVEL)
    else:
        to_pil_image(image).save(file, "JPEG", quality=100)
    return file.getvalue()


def sample_path(folder: Path, image_id: str, image_format: ImageFormat) -> Path:
    """Where the image of an item goes: folders as in its id, whatever would lead outside is quoted."""
    parts = [quote(part, safe=" ") for part in image_id.split("/")]
    safe = [part.replace(".", "%2E") if part.strip(". ") == "" else part for part in parts]
    return folder.joinpath(*(part or "%" for part in safe[:-1]), (safe[-1] or "%") + _SUFFIX[image_format])
