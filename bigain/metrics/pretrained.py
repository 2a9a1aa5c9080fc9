"""Models that transformers saved to a local folder, and extractors of features made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, Dinov2Model

from bigain.backbones.loading import UNLOADABLE, find_weights
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor


def load_pretrained(folder: str | None, published: str, kind: Any, *processors: Any) -> tuple[Any, str, list[Any]]:
    """Load a model of transformers from a folder, in float32, and its processors; nothing is downloaded.

    Args:
        folder: The model as transformers saves it, with safetensors.
        published: Name of such a model on the hub, for messages.
        kind: Class of the model.
        processors: Classes that are loaded from the same folder.

    Returns:
        The model, the sha256 of its weights in hex (of all shards in turn), and an object of each of the `processors`.

    Raises:
        InputError: If something is missing, damaged or not safetensors.
    """
    try:
        path = Path(folder or "").expanduser()
        if not (folder and path.is_dir()):
            raise InputError("no such folder" if folder else "no folder was given as `weights`")
        variant, files = find_weights(path, "text_encoder")
        model, info = kind.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            # The configuration could name a kernel on the hub, which is code.
            attn_implementation="sdpa",
        )
        # Transformers fills missing weights with random numbers.
        if missing := sorted(info["missing_keys"]):
            raise InputError(f"{path} lacks {len(missing)} weights, such as {missing[0]}")
        loaded = [processor.from_pretrained(path, local_files_only=True) for processor in processors]
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
    except UNLOADABLE as error:
        reason = " ".join(str(error).split())
        advice = f"get one with `hf download {published} --local-dir FOLDER`"
        raise InputError(f"cannot load a {kind.__name__} from {folder}: {reason}; {advice}") from error
    return model.float().eval(), digest.hexdigest(), loaded


class PretrainedExtractor(FeatureExtractor):
    """Features of a model of transformers.

    Images are resized to a square, bicubic with antialias and without rounding to 8 bits, clipped to [0, 1] and
    standardised by channel.

    Attributes:
        kind: Class of the model.
        published: Name on the hub of the model that published values are of, and so is `dimension` before `load`. Other
            models work and do not compare: a reference of other weights is refused.
        width: Name of the setting that holds the length of a feature.
        mean: Of the channels.
        deviation: Standard deviation of the channels.
    """

    kind: ClassVar[Any]
    published: ClassVar[str]
    width: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    deviation: ClassVar[tuple[float, float, float]]

    def __init__(self, weights: str | None = None) -> None:
        """Set the extractor up.

        Args:
            weights: Folder of the model as transformers saves it, with safetensors. Nothing is downloaded.
        """
        super().__init__()
        self.weights = weights

    def read(self) -> tuple[nn.Module, str]:
        network, digest, _ = load_pretrained(self.weights, self.published, self.kind)
        self.dimension = getattr(network.config, self.width)
        return network, digest

    def prepared(self, images: Tensor, side: int) -> Tensor:
        """Return the network's input for uint8 images. `(b, 3, side, side)`, float32."""
        x = images.to(torch.float32) / 255
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return (x - mean) / deviation


class DinoV2(PretrainedExtractor):
    """The class token of DINOv2 after the last norm, at 224 px; `frechet[dinov2]` is FD-DINOv2.

    Source: Stein et al., Exposing flaws of generative model evaluation metrics (NeurIPS 2023); Oquab et al., DINOv2
    (2023). Images are not rounded to 8 bits after the resize, and transformers interpolates the position embeddings by
    size, so that values differ slightly from those of the authors' package.
    Cost: a ViT-L/14 on 256 tokens per image.
    """

    protocol = "dinov2"
    dimension = 1024
    kind = Dinov2Model
    published = "facebook/dinov2-large"
    width = "hidden_size"
    mean = (0.485, 0.456, 0.406)
    deviation = (0.229, 0.224, 0.225)

    def features(self, images: Tensor) -> Tensor:
        return self.network(pixel_values=self.prepared(images, 224)).pooler_output


class ClipFeatures(PretrainedExtractor):
    """CLIP's image embeddings of unit length, at the model's size; `cmmd[clip]` is CMMD.

    Source: Jayasumana et al., Rethinking FID (CVPR 2024).
    Cost: a ViT-L/14 on 577 tokens per image.
    """

    protocol = "clip"
    dimension = 768
    kind = CLIPModel
    published = "openai/clip-vit-large-patch14-336"
    width = "projection_dim"
    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)

    def features(self, images: Tensor) -> Tensor:
        pixels = self.prepared(images, self.network.config.vision_config.image_size)
        pooled = self.network.vision_model(pixel_values=pixels).pooler_output
        embeddings: Tensor = self.network.visual_projection(pooled)
        return embeddings / embeddings.norm(dim=1, keepdim=True)
