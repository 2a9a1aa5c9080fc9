"""DINO similarity: the similarity of two images by their DINOv2 features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.metrics.base import ImageMetric, Images
from bigain.metrics.pretrained import DinoV2


class DinoSimilarity(ImageMetric):
    """`dino_similarity[dinov2-<weights>]`: cosine of the DINOv2 features of an image and of that of another run.

    1 for equal images; `<weights>` are 8 digits of their hash. The other run is usually the uncompressed one: `bigain
    score RUN --against OTHER --metric DinoSimilarity --metric.weights FOLDER`.

    Source: Ruiz et al., DreamBooth (CVPR 2023), who use DINO ViT-S/16; here the features are those of `DinoV2`.
    Cost: that of `DinoV2` for both images.
    """

    name = "dino_similarity"
    title = "DINO similarity"
    better = "higher"
    needs = frozenset({"images", "other images"})

    def __init__(self, weights: str) -> None:
        """Set the metric up.

        Args:
            weights: Folder of a DINOv2 model: see `DinoV2`.
        """
        self.extractor = DinoV2(weights)

    @property
    def label(self) -> str:
        return f"{self.name}[{self.extractor.protocol}-{self.extractor.digest()[:8]}]"

    def measure(self, images: Images) -> Tensor:
        """Compute the similarity of each pair. `(b,)` in [-1, 1], float32.

        Raises:
            InputError: If the model cannot be loaded.
        """
        assert images.others is not None
        # Images of two runs are on the CPU.
        device = torch.device("cuda" if torch.cuda.is_available() else images.pixels.device)
        a, b = (self.extractor(pixels.to(device)) for pixels in (images.pixels, images.others))
        return F.cosine_similarity(a, b).to(images.pixels.device)
