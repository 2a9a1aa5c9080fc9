"""Reading images: RGB, shorter side resized, centre cropped."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bigain.errors import InputError

# Names what `decode_image` does; part of the key of cached latents, so it changes when the arithmetic does.
PREPROCESSING = "rgb, shorter side bicubic antialiased, centre crop; 1"

# What Pillow lets out on damaged files: its AVIF decoder raises RuntimeError, and parsers whatever their tags lead to,
# which Pillow itself takes for a bad file only while it looks for the format.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError),
    *(TypeError, LookupError, ArithmeticError, EOFError, struct.error),
)

# Of a longer strip, only the middle is resized: the rest would be cropped away, after taking gigabytes.
_MAX_ASPECT = 8


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        InputError: If it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except OSError as error:
        raise InputError(f"image {path} cannot be read ({error})") from error


def read_image(path: Path, size: int) -> Tensor:
    """`decode_image` of a file."""
    return decode_image(read_bytes(path), str(path), size)


def decode_image(content: bytes, name: str, size: int) -> Tensor:
    """Decode one image as the paper's protocol does.

    Converts to RGB (also grey, palette, CMYK and RGBA files, whatever their name says), resizes the shorter side to
    `size` (bicubic, antialiased), crops the centre. EXIF orientation is ignored, as in the paper's loaders.

    Args:
        content: Encoded image.
        name: Where it came from, for messages.
        size: Side of the result in px.

    Returns:
        `(3, size, size)`, uint8 in [0, 255].

    Raises:
        InputError: If it is truncated or no image.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of harmless damage, such as cut EXIF tags, without the name of the file.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as opened:
                image = _to_rgb(opened)
    except _UNREADABLE as error:
        # Pillow names the memory address of what it was given, which tells nobody anything.
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(
            f"image {name} cannot be decoded ({reason}); replace it, leave it out with a subset file, or pass over "
            "it with on_bad_image: skip"
        ) from error
    resized = F.resize(_middle(image), [size], interpolation=InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(resized, [size, size]))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    image.load()
    # Transparency is dropped anyway; with a palette, Pillow would advise to keep it.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _middle(image: Image.Image) -> Image.Image:
    """The centre of a long strip, and any other image as it is."""
    width, height = image.size
    keep = _MAX_ASPECT * min(width, height)
    if max(width, height) <= keep:
        return image
    # What is cut off is the same on both sides, or the centre would move.
    keep += (max(width, height) - keep) % 2
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    return image.crop((left, top, min(width, left + keep), min(height, top + keep)))
