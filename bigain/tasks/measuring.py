"""What is measured of generated images while they are made: whether the networks for it are there, and loading them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.fidelity import ClipScore
from bigain.metrics.reference import ReferenceStatistics
from bigain.tasks.forwards import Forwards
from bigain.tokens.precision import without_autocast

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measuring:
    """What can be measured here.

    Attributes:
        extractor: Of features; None where there is none or its weights are not there.
        reference: Statistics of real images; None where there are none.
        no_distance: Why no distance can be computed; None if it can.
        clip: Scores images with their prompts; None where that was not asked for or its weights are not there.
        no_clip_score: Why there is none although it was asked for.
    """

    extractor: FeatureExtractor | None = None
    reference: ReferenceStatistics | None = None
    no_distance: str | None = None
    clip: ClipScore | None = None
    no_clip_score: str | None = None

    def features(self, images: Tensor, forwards: Forwards) -> list[list[float] | None]:
        """Features of images, `(b, 3, s, s)` uint8, one list of d numbers each; None without an extractor."""
        if self.extractor is None:
            return [None] * len(images)
        features: list[list[float] | None] = features_of(self.extractor, images, forwards).tolist()
        return features

    def clip_scores(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        """CLIP score of each image with its prompt; None where they are not measured."""
        if self.clip is None:
            return [None] * len(images)
        scores: list[float | None] = self.clip(images, prompts).tolist()
        return scores


def features_of(extractor: FeatureExtractor, images: Tensor, forwards: Forwards) -> Tensor:
    """Features of images `(b, 3, s, s)` uint8, the same whatever the batch on a CPU. `(b, d)`, float32."""
    with without_autocast(images):
        return forwards.run(lambda i, first, last: extractor(images[i]).float(), len(images), images.device)


def find_reference(reference: str) -> Path:
    """A reference file, or the one that an embedded extractor of this name comes with."""
    embedded = Path(str(resources.files("bigain"))) / "assets" / reference / "reference.npz"
    return embedded if embedded.is_file() else Path(reference).expanduser()


def prepare_measuring(
    extractor: FeatureExtractor | None, reference: str | None, clip_model: str | None, keeps_images: bool
) -> Measuring:
    """Load extractor and reference. Images are worth making without them; a wrong one is refused all the same.

    Args:
        extractor: Of features, loaded or not.
        reference: An `.npz` file, or the name of an embedded extractor.
        clip_model: Folder of a CLIP model.
        keeps_images: Whether what is missing can be measured later.

    Raises:
        InputError: If a reference is of another protocol, or nothing at all would be left of the images.
    """
    clip, no_clip_score = _clip(clip_model)
    loaded, missing, statistics = None, None, None
    if extractor is None:
        missing = "no extractor was asked for"
    else:
        try:
            extractor.load()
            loaded = extractor
        except InputError as error:
            if not keeps_images:
                raise
            missing = str(error)
        if reference is None:
            missing = missing or "no reference statistics were given"
        elif not (path := find_reference(reference)).is_file():
            missing = missing or f"reference {path} does not exist"
        else:
            digest = "" if loaded is None else loaded.digest()
            statistics = ReferenceStatistics.load(path, extractor.protocol, extractor.dimension, digest)
        if missing is not None:
            kept = "Images are kept for `bigain score`" if keeps_images else "Features are kept"
            _warn(f"warning: no distance will be computed: {missing}. {kept}")
    return Measuring(loaded, statistics, missing, clip, no_clip_score)


def _clip(folder: str | None) -> tuple[ClipScore | None, str | None]:
    if folder is None:
        return None, None
    clip = ClipScore(folder)
    missing = clip.available()
    if missing is None:
        return clip, None
    _warn(f"warning: no CLIP score will be computed: {missing}. Images are kept for `bigain score --clip-model`")
    return None, missing


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
