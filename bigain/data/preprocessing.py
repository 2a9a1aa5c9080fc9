"""Reading images: RGB, shorter side resized, centre cropped."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bigain.errors import InputError


def read_image(path: Path, size: int) -> Tensor:
    """Read one image as the paper's protocol does.

    Converts to RGB (also grey, palette, CMYK and RGBA files, whatever their name says), resizes the shorter side to
    `size` (bicubic, antialiased), crops the centre. EXIF orientation is ignored, as in the paper's loaders.

    Args:
        path: Image file.
        size: Side of the result in px.

    Returns:
        `(3, size, size)`, uint8 in [0, 255].

    Raises:
        InputError: If the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image {path} cannot be decoded ({error}); replace it or leave it out with a subset file"
        ) from error
    resized = F.resize(image, [size], interpolation=InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(resized, [size, size]))
