"""LPIPS, a learned perceptual distance between images of two runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.metrics.fidelity import image_pairs
from bigain.runs.schema import LpipsNetwork
from bigain.tokens.precision import without_autocast

_WEIGHTS = {
    "alex": AlexNet_Weights.DEFAULT.url,
    "vgg": VGG16_Weights.DEFAULT.url,
    "squeeze": SqueezeNet1_1_Weights.DEFAULT.url,
}


class Lpips(ImageMetric):
    """`lpips[network]` (LPIPS 0.1; Zhang et al., 2018), with torchmetrics' copy of its linear weights.

    The network's own weights must be in torch's download cache; nothing is downloaded.
    """

    name = "lpips"
    better = "lower"
    needs = frozenset({"images", "other images"})

    def __init__(self, network: LpipsNetwork = "alex") -> None:
        """Set the metric up.

        Args:
            network: `alex` is what papers report; `vgg` and `squeeze` give different numbers.
        """
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
        """Compute the distance of each pair. `(b,)`, float32; smaller is closer, 0 for equal images.

        Raises:
            InputError: If the weights are missing or the sizes differ.
        """
        x, y = ((pixels / 127.5 - 1).float() for pixels in image_pairs(images))
        if self._metric is None:
            # Without this check torchvision would download them.
            if reason := self.unavailable():
                raise InputError(f"LPIPS cannot be computed: {reason}")
            self._metric = LearnedPerceptualImagePatchSimilarity(net_type=self.network)
        metric = self._metric.to(x.device)
        scores = []
        with torch.no_grad(), without_autocast(x):
            # The metric keeps only sums, so it gets one pair at a time.
            for a, b in zip(x, y, strict=True):
                metric.reset()
                metric.update(a[None], b[None])
                scores.append(metric.compute())
        return torch.stack(scores)
