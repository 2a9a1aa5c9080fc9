"""Features of DINOv2, for Frechet distances, and the similarity of two images by them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2Model

from bigain.errors import InputError
from bigain.metrics.base import ImageMetric, Images
from bigain.metrics.pretrained import PretrainedExtractor

_SIDE = 224


class DinoV2(PretrainedExtractor):
    """The class token of DINOv2 after the last norm, at 224 px; `frechet[dinov2]` is FD-DINOv2.

    Published distances are of ViT-L/14 (`facebook/dinov2-large`), and so is `dimension` before `load`; other sizes work
    and do not compare: a reference of other weights is refused.

    Source: Stein et al., Exposing flaws of generative model evaluation metrics (NeurIPS 2023); Oquab et al., DINOv2
    (2023). Images are not rounded to 8 bits after the resize, and transformers interpolates the position embeddings by
    size, so that values differ slightly from those of the authors' package.
    Cost: a ViT-L/14 on 256 tokens per image.
    """

    protocol = "dinov2"
    dimension = 1024
    title = "DINOv2 model as transformers saves it"
    kind = Dinov2Model
    published = "facebook/dinov2-large"
    width = "hidden_size"
    mean = (0.485, 0.456, 0.406)
    deviation = (0.229, 0.224, 0.225)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(pixel_values=self.prepared(images, _SIDE)).pooler_output
        return features


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

    def unavailable(self) -> str | None:
        return self.extractor.unavailable()

    def measure(self, images: Images) -> Tensor:
        """Compute the similarity of each pair. `(b,)` in [-1, 1], float32.

        Raises:
            InputError: If the model cannot be loaded.
        """
        if images.others is None:
            raise InputError("DINO similarity compares the images of two runs; use `bigain score RUN --against OTHER`")
        # Images of two runs are on the CPU.
        device = torch.device("cuda" if torch.cuda.is_available() else images.pixels.device)
        a, b = (self.extractor(pixels.to(device)) for pixels in (images.pixels, images.others))
        return F.cosine_similarity(a, b).to(images.pixels.device)
