"""Image decoding: RGB, shorter side resized, centre cropped."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bigain.data.reading import read_rgb
from bigain.errors import InputError

# Describes `decode_image`; part of the key of cached latents, so it changes with the arithmetic.
PREPROCESSING = "rgb, shorter side bicubic antialiased, centre crop; 2"

# Longer strips are cropped to their middle first: resizing all of one would take gigabytes.
_MAX_ASPECT = 8


def decode_image(content: bytes, name: str, size: int) -> Tensor:
    """Decode one image with the paper's preprocessing.

    Converts to RGB (see `read_rgb`), resizes the shorter side to `size` (bicubic, antialiased), crops the centre.
    EXIF orientation is ignored, as in the paper's loaders.

    Args:
        content: Encoded image.
        name: Location of the image, for messages.
        size: Side of the result in px.

    Returns:
        `(3, size, size)`, uint8 in [0, 255].

    Raises:
        InputError: If it is truncated or not an image.
    """
    try:
        image = read_rgb(content)
    except ValueError as error:
        raise InputError(
            f"image {name} cannot be decoded ({error}); replace it, leave it out with a subset file, or skip it with "
            "on_bad_image: skip"
        ) from error
    resized = F.resize(_middle(image), [size], interpolation=InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(resized, [size, size]))


def _middle(image: Image.Image) -> Image.Image:
    """Crop a long strip to its centre; return any other image unchanged."""
    width, height = image.size
    keep = _MAX_ASPECT * min(width, height)
    if max(width, height) <= keep:
        return image
    # Both sides lose the same, so that the centre stays.
    keep += (max(width, height) - keep) % 2
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    return image.crop((left, top, min(width, left + keep), min(height, top + keep)))
