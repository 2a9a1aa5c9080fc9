"""Fidelity: how close an image is to that of another model for the same seed and prompt."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.runs.schema import LpipsNetwork
from bigain.tokens.precision import widest_float, without_autocast

_WEIGHTS = {
    "alex": AlexNet_Weights.DEFAULT.url,
    "vgg": VGG16_Weights.DEFAULT.url,
    "squeeze": SqueezeNet1_1_Weights.DEFAULT.url,
}


class Psnr(ImageMetric):
    """`psnr`: peak signal-to-noise ratio in dB over all pixels and channels, of the images that differ at all.

    Larger is closer; infinite for equal images. float64.
    """

    name = "psnr"
    unit = "dB"
    better = "higher"
    needs = frozenset({"images", "other images"})

    def measure(self, images: Images) -> Tensor:
        a, b = image_pairs(images)
        return peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))


class Ssim(ImageMetric):
    """`ssim`: structural similarity (Wang et al., 2004) in [-1, 1], averaged over pixels and channels; 1 if equal.

    A Gaussian window of sigma 1.5 px and 11 px side, constants for a range of 255, float64. Colours are not converted
    to grey, and border pixels count, with mirrored windows: values differ from packages that do otherwise. Images have
    at least 6 px.
    """

    name = "ssim"
    better = "higher"
    needs = frozenset({"images", "other images"})

    def measure(self, images: Images) -> Tensor:
        values = structural_similarity_index_measure(*image_pairs(images), reduction="none", data_range=255.0)
        return cast(Tensor, values)


class Lpips(ImageMetric):
    """`lpips[network]` (LPIPS 0.1; Zhang et al., 2018), with torchmetrics' copy of its linear weights.

    The network's own weights must be in torch's download cache; nothing is downloaded.
    """

    name = "lpips"
    better = "lower"
    needs = frozenset({"images", "other images"})

    def __init__(self, network: LpipsNetwork = "alex") -> None:
        """Choose the network: `alex` is what papers report; `vgg` and `squeeze` give different numbers."""
        self.network = network
        self._metric: LearnedPerceptualImagePatchSimilarity | None = None

    @property
    def label(self) -> str:
        return f"lpips[{self.network}]"

    def unavailable(self) -> str | None:
        url = _WEIGHTS[self.network]
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        return None if path.is_file() else f"{path} does not exist; get it with `curl -L --create-dirs -o {path} {url}`"

    def measure(self, images: Images) -> Tensor:
        """Compute the distance of each pair. `(b,)`, float32; smaller is closer, 0 for equal images."""
        x, y = ((pixels / 127.5 - 1).float() for pixels in image_pairs(images))
        if self._metric is None:
            # Without this check torchvision would download them.
            if reason := self.unavailable():
                raise InputError(f"LPIPS cannot be computed: {reason}")
            self._metric = LearnedPerceptualImagePatchSimilarity(net_type=self.network)
        network = self._metric.to(x.device).net
        with torch.no_grad(), without_autocast(x):
            # Pair by pair: last digits do not depend on the batch.
            return torch.cat([network(a[None], b[None]).flatten() for a, b in zip(x, y, strict=True)])


def image_pairs(images: Images) -> tuple[Tensor, Tensor]:
    """Return the images and those of the other run, `(b, 3, h, w)`, as float64.

    Next to squares of 255, float32 has few digits for the variance of smooth regions.
    """
    a, b = images.pixels, images.others
    assert b is not None
    if a.shape != b.shape:
        shapes = f"images of {tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"{shapes} cannot be compared pixel by pixel; compare runs of one image_size")
    dtype = widest_float(a.device)
    return a.to(dtype), b.to(dtype)
