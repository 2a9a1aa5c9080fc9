"""PickScore: which image people prefer for a prompt, by a CLIP model trained on their choices."""

from __future__ import annotations

from torch import Tensor

from bigain.metrics.base import Images
from bigain.metrics.clip_score import ClipScore


class PickScore(ClipScore):
    """`pick_score[model-<weights>]`: cosine of image and prompt, times the model's own scale.

    `<weights>` are 8 digits of their hash. About 18 to 23 for published models.

    Source: Kirstain et al., Pick-a-Pic (NeurIPS 2023).
    Cost: a CLIP ViT-H/14 per image and prompt.
    """

    name = "pick_score"
    title = "PickScore"
    later = "bigain score --metric PickScore --metric.folder"
    published = "yuvalkirstain/PickScore_v1"

    @property
    def label(self) -> str:
        return f"{self.name}[{self.folder.name}-{self.loaded[1][:8]}]"

    def measure(self, images: Images) -> Tensor:
        """Compute the score of each image with its prompt. `(b,)`, float32; see `ClipScore.measure`."""
        return self.cosines(images) * self.loaded[0].logit_scale.detach().exp()
