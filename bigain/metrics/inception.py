"""Inception features under the protocols that published distances use."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE_1,
    InceptionE_2,
)
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from bigain.errors import InputError, check_choice
from bigain.metrics.extractors import FeatureExtractor, load_weights

InceptionProtocol = Literal["pytorch-fid", "torch-fidelity", "torchmetrics"]

VARIABLE = "BIGAIN_INCEPTION_WEIGHTS"
# One file under two names: the converted weights of Inception's graph of 2015-12-05, as torch-fidelity and pytorch-fid
# publish them.
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAMES[0]}"

_SIDE = 299


class Inception(FeatureExtractor):
    """Pooled features, 2048-d, of the InceptionV3 that Frechet inception distances are defined by.

    The layers are torch-fidelity's. The protocols differ in how an image reaches 299 x 299 px and [-1, 1]:

    - `pytorch-fid`: divided by 255, resized bilinearly without antialias at half-pixel centres
      (`align_corners=False`), then `2 x - 1`. What the paper reports.
    - `torch-fidelity`: resized as TensorFlow 1 did, bilinear without antialias from pixel corners, then
      `(x - 128) / 128`. Also torchmetrics with `antialias=False`.
    - `torchmetrics`: resized bilinearly with antialias, then `(x - 128) / 128`. Its default since 1.8.

    None of them rounds after the resize.
    """

    dimension = 2048

    def __init__(self, protocol: InceptionProtocol = "pytorch-fid", weights: str | None = None) -> None:
        """Set the extractor up.

        Args:
            protocol: Name of the preprocessing.
            weights: Weight file, `.pth` or `.safetensors`. null looks at the environment variable
                `BIGAIN_INCEPTION_WEIGHTS`, then in torch's download cache. Nothing is downloaded.
        """
        super().__init__()
        check_choice("protocol", protocol, get_args(InceptionProtocol))
        self.protocol = protocol
        self.weights = weights

    def read(self) -> tuple[nn.Module, str]:
        path, network = find_weights(self.weights), pooling_layers()
        sha256 = None if path.suffix == ".safetensors" else SHA256
        fix = f"get {NAMES[0]} from {URL}, or give a copy you converted yourself as .safetensors"
        return network, load_weights(network, path, sha256, fix)

    @cached_property
    def classifier(self) -> Tensor | None:
        """The weights of the classifier behind the features, `(1008, 2048)`; None if the file has none."""
        with torch.device("meta"):
            layer = nn.Linear(2048, 1008)
        try:
            load_weights(layer, find_weights(self.weights), None, "", "fc.")
        except InputError:
            return None
        return layer.weight.detach()

    def features(self, images: Tensor) -> Tensor:
        return self.network(self.prepared(images)).flatten(1)

    def prepared(self, images: Tensor) -> Tensor:
        """Return the network's input for uint8 images. `(b, 3, 299, 299)`, float32, about [-1, 1]."""
        size, x = (_SIDE, _SIDE), images.to(torch.float32)
        if self.protocol == "pytorch-fid":
            return 2 * F.interpolate(x / 255, size, mode="bilinear", align_corners=False) - 1
        if self.protocol == "torch-fidelity":
            resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(x, size, align_corners=False)
        else:
            resized = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return (resized - 128) / 128


def pooling_layers() -> nn.Sequential:
    """Build InceptionV3 up to its average pooling on the meta device, without memory for the weights.

    torch-fidelity's own extractor class is not used because it downloads and unpickles in its constructor.
    """
    with torch.device("meta"):
        layers = OrderedDict[str, nn.Module](
            Conv2d_1a_3x3=BasicConv2d(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=BasicConv2d(32, 32, kernel_size=3),
            Conv2d_2b_3x3=BasicConv2d(32, 64, kernel_size=3, padding=1),
            MaxPool_1=nn.MaxPool2d(kernel_size=3, stride=2),
            Conv2d_3b_1x1=BasicConv2d(64, 80, kernel_size=1),
            Conv2d_4a_3x3=BasicConv2d(80, 192, kernel_size=3),
            MaxPool_2=nn.MaxPool2d(kernel_size=3, stride=2),
            Mixed_5b=InceptionA(192, pool_features=32),
            Mixed_5c=InceptionA(256, pool_features=64),
            Mixed_5d=InceptionA(288, pool_features=64),
            Mixed_6a=InceptionB(288),
            Mixed_6b=InceptionC(768, channels_7x7=128),
            Mixed_6c=InceptionC(768, channels_7x7=160),
            Mixed_6d=InceptionC(768, channels_7x7=160),
            Mixed_6e=InceptionC(768, channels_7x7=192),
            Mixed_7a=InceptionD(768),
            Mixed_7b=InceptionE_1(1280),
            Mixed_7c=InceptionE_2(2048),
            AvgPool=nn.AdaptiveAvgPool2d(1),
        )
    return nn.Sequential(layers)


def find_weights(weights: str | None) -> Path:
    """Return the weight file: `weights`, else the environment variable's, else the one in torch's download cache.

    Raises:
        InputError: If it is missing; the message names the paths and how to get it.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    configured = weights or os.environ.get(VARIABLE)
    paths = [Path(configured).expanduser()] if configured else [cache / name for name in NAMES]
    for path in paths:
        if path.is_file():
            return path
    origin = "" if not configured else f" (from {'`weights`' if weights else VARIABLE})"
    raise InputError(
        f"the Inception weights {NAMES[0]} (sha256 {SHA256[:8]}..., 96 MB) are missing; looked for "
        f"{', '.join(map(str, paths))}{origin}; get them with `curl -L --create-dirs -o {cache / NAMES[0]} {URL}`, or "
        f"name a copy in {VARIABLE}"
    )
