"""Image embeddings of CLIP, for CMMD and other distances between sets of images."""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPModel

from bigain.metrics.pretrained import PretrainedExtractor


class ClipFeatures(PretrainedExtractor):
    """CLIP's image embeddings of unit length, at the model's size; `cmmd[clip]` is CMMD.

    Published values are of ViT-L/14 at 336 px (`openai/clip-vit-large-patch14-336`), and so is `dimension` before
    `load`; other models work and do not compare: a reference of other weights is refused.

    Source: Jayasumana et al., Rethinking FID (CVPR 2024).
    Cost: a ViT-L/14 on 577 tokens per image.
    """

    protocol = "clip"
    dimension = 768
    title = "CLIP model as transformers saves it"
    kind = CLIPModel
    published = "openai/clip-vit-large-patch14-336"
    width = "projection_dim"
    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)

    def features(self, images: Tensor) -> Tensor:
        pixels = self.prepared(images, self.network.config.vision_config.image_size)
        embeddings: Tensor = self.network.visual_projection(
            self.network.vision_model(pixel_values=pixels).pooler_output
        )
        return embeddings / embeddings.norm(dim=1, keepdim=True)
