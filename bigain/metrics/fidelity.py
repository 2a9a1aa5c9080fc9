"""Fidelity: how close an image is to that of another model for the same seed and prompt, pixel by pixel."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.tokens.precision import widest_float

# Half the window of the structural similarity, which is mirrored at the border.
_REACH = 5


class Psnr(ImageMetric):
    """`psnr` in dB, the mean over images that differ at all."""

    name = "psnr"
    needs = frozenset({"images", "other images"})

    def measure(self, images: Images) -> Tensor:
        return psnr(*pair(images))


class Ssim(ImageMetric):
    """`ssim`, the mean over images."""

    name = "ssim"
    needs = frozenset({"images", "other images"})

    def measure(self, images: Images) -> Tensor:
        return ssim(*pair(images))


def pair(images: Images) -> tuple[Tensor, Tensor]:
    """Return the images and those of the other run."""
    if images.others is None:
        raise InputError("fidelity compares the images of two runs; use `bigain score RUN --against OTHER`")
    return images.pixels, images.others


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each pair of images, over all pixels and channels.

    Args:
        a: Images in [0, 255]. `(b, 3, h, w)`, uint8.
        b: The images to compare with, of the same shape.

    Returns:
        `(b,)` in dB, float64; larger is closer, infinite for equal images.

    Raises:
        InputError: If the sizes differ.
    """
    x, y = widened(a, b)
    return peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Compute the structural similarity of each pair of images (Wang et al., 2004), averaged over pixels and channels.

    A Gaussian window of sigma 1.5 px and 11 px side, constants for a range of 255. Colours are not converted to grey,
    and border pixels count, with mirrored windows: values differ from packages that do otherwise.

    Args:
        a: Images in [0, 255]. `(b, 3, h, w)`, uint8.
        b: The images to compare with, of the same shape.

    Returns:
        `(b,)` in [-1, 1], float64; 1 for equal images.

    Raises:
        InputError: If the sizes differ, or a side has less than 6 px.
    """
    x, y = widened(a, b)
    if min(x.shape[-2:]) <= _REACH:
        raise InputError(f"structural similarity needs images of at least {_REACH + 1} px, not {tuple(x.shape[-2:])}")
    return cast(Tensor, structural_similarity_index_measure(x, y, reduction="none", data_range=255.0))


def widened(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float64: next to squares of 255, float32 has few digits for the variance of smooth regions."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4:
        raise ValueError(f"expected uint8 images (b, 3, h, w), got {a.dtype} {tuple(a.shape)} and {b.dtype}")
    if a.shape != b.shape:
        raise InputError(
            f"images of {tuple(a.shape)} and {tuple(b.shape)} cannot be compared pixel by pixel; compare runs of one "
            "image_size"
        )
    wide = widest_float(a.device)
    return a.to(wide), b.to(wide)
