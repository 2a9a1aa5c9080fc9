"""How close an image is to another of the same seed and prompt, and to its caption. One number per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from bigain.errors import InputError
from bigain.tokens.precision import widest_float, without_autocast

LpipsNetwork = Literal["alex", "vgg", "squeeze"]

# Of the window of the structural similarity, which is mirrored at the border.
_REACH = 5
_NETWORKS = {
    "alex": AlexNet_Weights.DEFAULT.url,
    "vgg": VGG16_Weights.DEFAULT.url,
    "squeeze": SqueezeNet1_1_Weights.DEFAULT.url,
}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images, over all its pixels and channels.

    Args:
        a: Images in [0, 255]. `(b, 3, h, w)`, uint8.
        b: The images to be like, of the same shape.

    Returns:
        `(b,)` in dB, float64; larger is closer, infinite for equal images.

    Raises:
        InputError: If the sizes differ.
    """
    x, y = _pair(a, b)
    return peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of images (Wang et al., 2004), the mean over pixels and channels.

    A Gaussian window of sigma 1.5 px and 11 px side, constants for a range of 255. Colours are not turned to grey, and
    border pixels count, their windows mirrored: values differ from packages that do otherwise.

    Args:
        a: Images in [0, 255]. `(b, 3, h, w)`, uint8.
        b: The images to be like, of the same shape.

    Returns:
        `(b,)` in [-1, 1], float64; 1 for equal images.

    Raises:
        InputError: If the sizes differ, or a side has less than 6 px.
    """
    x, y = _pair(a, b)
    if min(x.shape[-2:]) <= _REACH:
        raise InputError(f"structural similarity needs images of at least {_REACH + 1} px, not {tuple(x.shape[-2:])}")
    return cast(Tensor, structural_similarity_index_measure(x, y, reduction="none", data_range=255.0))


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as wide floats: next to squares of 255, float32 leaves few digits for the variance of smooth regions."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4:
        raise ValueError(f"expected uint8 images (b, 3, h, w), got {a.dtype} {tuple(a.shape)} and {b.dtype}")
    if a.shape != b.shape:
        raise InputError(f"images of {tuple(a.shape)} and {tuple(b.shape)} cannot be compared pixel by pixel")
    wide = widest_float(a.device)
    return a.to(wide), b.to(wide)


class Lpips:
    """Learned perceptual distance (LPIPS 0.1; Zhang et al., 2018), with torchmetrics' copy of its linear weights.

    The network's own weights must be in torch's download cache; nothing is downloaded.
    """

    def __init__(self, network: LpipsNetwork = "alex") -> None:
        """Set it up.

        Args:
            network: `alex` is what papers report; `vgg` and `squeeze` give other numbers.
        """
        self.network = network
        self._metric: LearnedPerceptualImagePatchSimilarity | None = None

    def available(self) -> str | None:
        """Why it cannot be computed, in words; None if it can."""
        url = _NETWORKS[self.network]
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        return None if path.is_file() else f"{path} does not exist; get it with `curl -L --create-dirs -o {path} {url}`"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images.

        Args:
            a: Images in [0, 255]. `(b, 3, h, w)`, uint8.
            b: The images to be like, of the same shape.

        Returns:
            `(b,)`, float32; smaller is closer, 0 for equal images.

        Raises:
            InputError: If the weights are not there or the sizes differ.
        """
        x, y = ((image / 127.5 - 1).float() for image in _pair(a, b))
        if self._metric is None:
            # Without this, torchvision would download.
            if reason := self.available():
                raise InputError(f"LPIPS cannot be computed: {reason}")
            self._metric = LearnedPerceptualImagePatchSimilarity(net_type=self.network)
        metric = self._metric.to(a.device)
        scores = []
        with torch.no_grad(), without_autocast(a):
            # The metric keeps sums only: one pair at a time.
            for one, other in zip(x, y, strict=True):
                metric.reset()
                metric.update(one[None], other[None])
                scores.append(metric.compute())
        return torch.stack(scores)


class ClipScore:
    """Similarity of an image and its caption: 100 times the cosine of their CLIP embeddings, at least 0.

    Hessel et al. (2021) multiply by 2.5 instead of 100. Longer captions than the model reads are cut.
    """

    def __init__(self, folder: str) -> None:
        """Set it up.

        Args:
            folder: A CLIP model as transformers saves it, with safetensors weights, tokenizer and image processor.
                Papers report `openai/clip-vit-large-patch14` or `openai/clip-vit-base-patch16`: say which.
        """
        self.folder = Path(folder).expanduser()
        self._model: CLIPModel | None = None

    def available(self) -> str | None:
        """Why it cannot be computed, in words; None if it can."""
        for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
            if not (self.folder / name).is_file():
                return f"{self.folder / name} does not exist; expected a CLIP model as transformers saves it"
        return None if any(self.folder.glob("*.safetensors")) else f"{self.folder} has no .safetensors weights"

    def _load(self) -> CLIPModel:
        if self._model is None:
            if reason := self.available():
                raise InputError(f"the CLIP score cannot be computed: {reason}")
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                self._processor = CLIPImageProcessor.from_pretrained(self.folder, local_files_only=True)
                model, info = CLIPModel.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise InputError(f"cannot load the CLIP model {self.folder}: {' '.join(str(error).split())}") from error
            # Transformers fills them with random numbers.
            if absent := sorted(info["missing_keys"]):
                raise InputError(f"{self.folder} lacks {len(absent)} weights, such as {absent[0]}")
            self._model = model.float().eval()
        return self._model

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Score of each image with its caption.

        Args:
            images: In [0, 255]. `(b, 3, h, w)`, uint8.
            captions: One per image.

        Returns:
            `(b,)` in [0, 100], float32.

        Raises:
            InputError: If the model cannot be loaded.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images and {len(captions)} captions")
        model = self._load().to(images.device)
        length = model.config.text_config.max_position_embeddings
        text = self._tokenizer(list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt")
        pixels = self._processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"]
        with torch.no_grad(), without_autocast(images):
            result = model(
                input_ids=text["input_ids"].to(images.device),
                attention_mask=text["attention_mask"].to(images.device),
                pixel_values=pixels.to(images.device),
            )
        # Both have unit length.
        scores: Tensor = 100 * (result.image_embeds * result.text_embeds).sum(dim=-1)
        return scores.clamp(min=0)
