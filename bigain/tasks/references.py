"""Reference statistics of real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from bigain.data.base import EvalDataModule
from bigain.data.folders import listing, scan
from bigain.data.reading import read_rgb
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.reference import MIN_IMAGES, Moments, ReferenceStatistics

# Functions that decode images at their native size, by the name of each in messages.
Images = Mapping[str, Callable[[], Image.Image]]

_BATCH = 32


def images_below(folder: Path) -> Images:
    """Return all images of a folder and its folders, in the order of their names.

    Raises:
        InputError: If there are none.
    """
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and path.name[0] != ".")]
    images = {str(parent / name): partial(read_rgb, parent / name) for parent in folders for name in scan(parent)[1]}
    if not images:
        raise InputError(f"no images in {folder}: {listing(folder)}")
    return images


def images_of(data: EvalDataModule) -> Images:
    """Return the images that a run on this dataset evaluates, not resized and not cropped.

    Raises:
        InputError: If the dataset is missing or inconsistent.
    """
    data.setup("predict")
    items = data.in_file_order(data.items)
    return {data.where(item): lambda item=item: read_rgb(data.read_bytes(item)) for item in items}  # type: ignore[misc]


def _batches(images: Images) -> Iterator[Tensor]:
    """Yield images in order; a batch ends where the size changes.

    Raises:
        InputError: If one cannot be read.
    """
    batch: list[Tensor] = []
    for name, read in images.items():
        try:
            image = pil_to_tensor(read())
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"image {name} cannot be read ({error}); replace or remove it") from error
        if batch and (len(batch) == _BATCH or image.shape != batch[0].shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    yield torch.stack(batch)


def reference_of(images: Images, source: str, extractor: FeatureExtractor, features: int) -> ReferenceStatistics:
    """Compute the statistics of images at their native size; `source` names them in the file.

    The features of `features` images, drawn at random, are kept.

    Raises:
        InputError: If they or `features` are too few, one cannot be read, or the extractor's weights are missing.
    """
    if min(len(images), features or MIN_IMAGES) < MIN_IMAGES:
        numbers = f"{MIN_IMAGES} images, and --features 0 or at least {MIN_IMAGES}, not {len(images)} and {features}"
        raise InputError(f"a reference takes at least {numbers}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor.load()
    extractor.to(device)
    # At random, because images may be in order of class.
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:features])
    kept = np.empty((len(chosen), extractor.dimension), np.float32)

    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        start = 0
        with tqdm(total=len(images), unit="image", disable=None) as bar:
            for batch in _batches(images):
                rows = extractor(batch.to(device)).cpu().numpy()
                first, last = np.searchsorted(chosen, [start, start + len(rows)])
                kept[first:last] = rows[chosen[first:last] - start]
                start += len(rows)
                bar.update(len(rows))
                yield rows

    moments, described = Moments.of(chunks()), f"{source}, {len(images)} images"
    return ReferenceStatistics(
        moments, extractor.protocol, extractor.digest(), described, kept if len(chosen) else None
    )
