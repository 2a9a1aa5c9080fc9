"""Generated images as files, and sheets of pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from bigain.data.reading import read_rgb
from bigain.errors import InputError

ImageFormat = Literal["png", "jpeg100_truncate", "none"]
# `(h, w, 3)`.
Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
# A title, and pictures with a caption each.
Row = tuple[str, Sequence[tuple[str, Picture]]]

# Gap between pictures, line of text, margin and average letter of a sheet, in px.
_GAP, _LINE, _MARGIN, _LETTER = 6, 18, 10, 6
# Most letters of a line.
_LONGEST = 110


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


def sheet(
    title: Sequence[str], rows: Sequence[Row], legend: Sequence[tuple[Colour, str]] = (), picture: Picture | None = None
) -> Image.Image:
    """Draw rows of pictures `(h, w, 3)`, unscaled, below a title and a legend with a picture to their left."""
    import matplotlib

    # Pillow's own font is ASCII only.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 12)
    indent = _MARGIN if picture is None else 2 * _MARGIN + picture.shape[1]
    # Names of classes and images may contain line breaks, and be long.
    lines = [
        (colour, " ".join(text.split())[:_LONGEST]) for colour, text in [*((None, text) for text in title), *legend]
    ]
    rows = [(" ".join(text.split())[:_LONGEST], tiles) for text, tiles in rows]
    ends = [indent + _LINE + font.getlength(text) for _, text in lines]
    ends += [_MARGIN + font.getlength(text) for text, _ in rows]
    ends += [_MARGIN - _GAP + sum(tile.shape[1] + _GAP for _, tile in tiles) for _, tiles in rows]
    header = max(_LINE * len(lines), 0 if picture is None else picture.shape[0]) + _GAP
    heights = [2 * _LINE + max(tile.shape[0] for _, tile in tiles) + _GAP for _, tiles in rows]
    image = Image.new("RGB", (round(max(ends)) + _MARGIN, 2 * _MARGIN + header + sum(heights)), "white")
    draw = ImageDraw.Draw(image)
    if picture is not None:
        image.paste(Image.fromarray(picture), (_MARGIN, _MARGIN))
    for number, (colour, text) in enumerate(lines):
        y = _MARGIN + number * _LINE
        if colour is not None:
            draw.rectangle((indent, y + 2, indent + _LINE - 6, y + _LINE - 4), colour, "black")
        draw.text((indent + (_LINE if colour else 0), y), text, "black", font)
    y = _MARGIN + header
    for (text, tiles), height in zip(rows, heights, strict=True):
        draw.text((_MARGIN, y), text, "black", font)
        x = _MARGIN
        for caption, tile in tiles:
            draw.text((x, y + _LINE), caption[: tile.shape[1] // _LETTER], "black", font)
            image.paste(Image.fromarray(tile), (x, y + 2 * _LINE))
            x += tile.shape[1] + _GAP
        y += height
    return image
