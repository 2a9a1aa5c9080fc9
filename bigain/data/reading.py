"""The one reader of image files: every mode and bit depth becomes 8-bit RGB, resized and cropped for a network."""

from __future__ import annotations

import errno
import io
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bigain.errors import InputError

# Describes `decode_image`; part of the key of cached latents, so it changes with the arithmetic.
PREPROCESSING = "rgb, shorter side bicubic antialiased, centre crop; 2"
# Resizing a longer strip would take gigabytes.
_MAX_ASPECT = 100

# Other formats are not tried: a `.jpg` that holds EPS would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, (2,)
# Raised by Pillow for damaged files: RuntimeError by its AVIF decoder, the second line by parsers of wrong tags.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError),
    *(TypeError, LookupError, ArithmeticError, EOFError, struct.error, ImageCms.PyCMSError),
)


def read_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: If it cannot be read, or is a pipe or a device, which may never end.
    """
    return _regular(path).read_bytes()


def _regular(path: Path) -> Path:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path


@contextmanager
def opened(file: Path | bytes) -> Iterator[Image.Image]:
    """Open an image, a file or its content; pixels are not decoded before they are used.

    Raises:
        ValueError: If it cannot be read, also later in the context; the message is the reason, without the name.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about harmless damage, such as truncated EXIF tags, without the file's name.
            warnings.simplefilter("ignore")
            source = io.BytesIO(file) if isinstance(file, bytes) else _regular(file)
            with Image.open(source, formats=_FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        # Pillow's own message has the memory address of the BytesIO.
        raise ValueError("not an image in a known format") from error
    except _UNREADABLE as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error


def read_rgb(file: Path | bytes) -> Image.Image:
    """Decode an image of any mode, a file or its content, as RGB.

    Transparency is dropped, grey of more than 8 bits is scaled: white is the largest number of the file's bits, and 1
    in floating point.

    Raises:
        ValueError: If it cannot be read or decoded, white is unknown (signed or 32-bit integers), or numbers are larger
            than white or negative; the message is the reason, without the name.
    """
    with opened(file) as image:
        image.load()
        if image.mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image)
        # Pillow would warn about the transparency of palette images.
        image.info.pop("transparency", None)
        return image.convert("RGB")


def decode_image(content: bytes, name: str, size: int) -> Tensor:
    """Decode one image with the paper's preprocessing. `(3, size, size)`, uint8 in [0, 255].

    Converts to RGB (see `read_rgb`), resizes the shorter side to `size` px (bicubic, antialiased), crops the centre.
    EXIF orientation is ignored, as in the paper's loaders.

    Raises:
        InputError: If it is truncated, not an image or a strip 100 times as long as wide; the message gives its `name`.
    """
    try:
        image = read_rgb(content)
        if max(image.size) > _MAX_ASPECT * min(image.size):
            raise ValueError(f"a strip of {image.width} x {image.height} px")
    except ValueError as error:
        fix = "replace it, leave it out with a subset file, or skip it with on_bad_image: skip"
        raise InputError(f"image {name} cannot be decoded ({error}); {fix}") from error
    resized = F.resize(image, [size], interpolation=InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(resized, [size, size]))


def _eight_bits(image: Image.Image) -> Image.Image:
    levels, tags, white = np.asarray(image), getattr(image, "tag_v2", {}), 1
    if image.mode != "F":
        bits, signed = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_SAMPLE_FORMAT) == _SIGNED
        if bits > 16 or signed:
            kind = f"{'signed ' if signed else ''}{bits}-bit integers"
            raise ValueError(f"grey with {kind}, whose white is unknown; save it with 8 or 16 bits")
        white = 2**bits - 1
    if not ((levels >= 0) & (levels <= white)).all():
        raise ValueError(f"grey levels outside 0 to {white}; save it with 8 or 16 bits")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # Pillow inverts these only if they have 8 bits.
        levels = white - levels
    scaled = (levels * np.float32(255)).round() if white == 1 else levels.astype(np.int64) * 255 // white
    return Image.fromarray(scaled.astype(np.uint8))
