"""Reference statistics of a folder of real images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from bigain.data.folders import listing, scan
from bigain.data.reading import opened, read_rgb
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.reference import Moments, ReferenceStatistics


def _images_below(folder: Path) -> list[Path]:
    """Return all images of a folder and its folders, those of one size next to each other."""
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and path.name[0] != ".")]
    paths = [each / name for each in folders for name in scan(each)[1]]
    if not paths:
        raise InputError(f"no images in {folder}: {listing(folder)}")
    return sorted(paths, key=lambda path: (_size_of(path), path))


def _size_of(path: Path) -> tuple[int, int]:
    """Return width and height, without decoding."""
    with _naming(path), opened(path) as image:
        return image.size


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"image {path} cannot be read ({error}); replace or remove it") from error


def _batches(paths: list[Path], size: int) -> Iterator[Tensor]:
    """Yield images in order; a batch ends where the size changes."""
    waiting: list[Tensor] = []
    for path in paths:
        with _naming(path):
            image = pil_to_tensor(read_rgb(path))
        if waiting and (len(waiting) == size or image.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    yield torch.stack(waiting)


def reference_of(folder: Path, extractor: FeatureExtractor, batch_size: int, features: int) -> ReferenceStatistics:
    """Compute the statistics of all images in a folder and below, at their native size.

    The features of `features` images, drawn at random, are kept.

    Raises:
        InputError: If there are none, one cannot be read, or the extractor's weights are missing.
    """
    extractor.load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor.to(device)
    paths = _images_below(folder)
    # Drawn, because paths are in order of size.
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:features])
    kept = np.empty((len(chosen), extractor.dimension), np.float32)

    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        start = 0
        with tqdm(total=len(paths), unit="image", disable=None) as bar:
            for batch in _batches(paths, batch_size):
                rows = extractor(batch.to(device)).cpu().numpy()
                first, last = np.searchsorted(chosen, [start, start + len(rows)])
                kept[first:last] = rows[chosen[first:last] - start]
                start += len(rows)
                bar.update(len(rows))
                yield rows

    moments = Moments.of(chunks())
    source = f"{folder.resolve().name}, {len(paths)} images"
    return ReferenceStatistics(moments, extractor.protocol, extractor.digest(), source, kept if len(chosen) else None)
