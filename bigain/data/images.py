"""Generated images as files, and the font of text on pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from bigain.data.reading import read_rgb
from bigain.errors import InputError

ImageFormat = Literal["png", "jpeg100_truncate", "none"]


def quantise(pixels: Tensor, image_format: ImageFormat) -> Tensor:
    """Convert images in [-1, 1] to uint8: rounded, or for `jpeg100_truncate` truncated as in the paper's release."""
    # Contiguous, as images read from files: the last digits of features depend on the memory layout.
    scaled = ((pixels.float() + 1) * 127.5).clamp(0, 255).contiguous()
    return (scaled if image_format == "jpeg100_truncate" else scaled.round()).to(torch.uint8)


def encode_images(images: Tensor, image_format: ImageFormat) -> list[bytes]:
    """Encode images on the CPU in parallel: `(b, 3, h, w)`, uint8 in [0, 255] -> b files, or none for `none`."""
    # Zlib's fastest level: a third of the time for a tenth more bytes.
    options = {"format": "PNG", "compress_level": 1} if image_format == "png" else {"format": "JPEG", "quality": 100}

    def encode(image: Tensor) -> bytes:
        file = io.BytesIO()
        to_pil_image(image).save(file, **options)
        return file.getvalue()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(encode, images)) if image_format != "none" else []


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font for text on pictures, with a size in px."""
    import matplotlib

    # Pillow's own font is ASCII only.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def decode_files(files: Sequence[bytes]) -> Tensor:
    """Decode files of images of equal size. `(b, 3, h, w)`, uint8 in [0, 255]."""
    return torch.stack([pil_to_tensor(read_rgb(file)) for file in files])


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read and decode image files of equal size. `(b, 3, h, w)`, uint8 in [0, 255].

    Raises:
        InputError: If one cannot be read, or has another size than the first; the message names it.
    """
    images: list[Tensor] = []
    for path in paths:
        try:
            images.append(pil_to_tensor(read_rgb(path)))
        except ValueError as error:
            raise InputError(f"cannot read {path}: {error}; delete it and run the command again") from error
        if images[-1].shape != images[0].shape:
            sizes = [f"{image.shape[2]} x {image.shape[1]}" for image in (images[-1], images[0])]
            raise InputError(f"{path} has {sizes[0]} px and {paths[0]} {sizes[1]}; expected images of one size")
    return torch.stack(images)
