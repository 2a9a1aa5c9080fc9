"""Statistics of a folder of real images, for the distances of generated ones to them.

    python scripts/export_reference_stats.py FOLDER OUT.npz --protocol pytorch-fid [--weights PATH]

All images below FOLDER are taken at their native size, uncropped, in RGB. OUT.npz holds `mu` and `sigma`, as
pytorch-fid writes and reads them, and `n`, `protocol`, `sha256` of the weights, `source`, and the features of
`--features` images drawn at random, which kernel distance, precision and recall need.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from bigain.data.folders import listing, scan
from bigain.data.reading import opened, read_rgb
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.inception import Inception, InceptionProtocol
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.metrics.shape_features import ShapeFeatures

PROTOCOLS = (*get_args(InceptionProtocol), ShapeFeatures.protocol)


def images_below(folder: Path) -> list[Path]:
    """All images of a folder and its folders, those of one size next to each other."""
    if not folder.is_dir():
        raise InputError(listing(folder))
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and path.name[0] != ".")]
    paths = [each / name for each in folders for name in scan(each)[1]]
    if not paths:
        raise InputError(f"no images in {folder}: {listing(folder)}")
    return sorted(paths, key=lambda path: (size_of(path), path))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, without decoding."""
    try:
        with opened(path) as image:
            return image.size
    except ValueError as error:
        raise unreadable(path, error) from error


def read(path: Path) -> Tensor:
    """`(3, h, w)`, uint8."""
    try:
        return pil_to_tensor(read_rgb(path))
    except ValueError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"image {path} cannot be read ({error}); replace or remove it")


def batches(paths: list[Path], size: int) -> Iterator[Tensor]:
    """Images in order; a batch ends where the size changes."""
    waiting: list[Tensor] = []
    for path in paths:
        image = read(path)
        if waiting and (len(waiting) == size or image.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    yield torch.stack(waiting)


def reference_of(folder: Path, extractor: FeatureExtractor, batch_size: int, features: int) -> ReferenceStatistics:
    """Statistics of all images below a folder; `features` of them keep theirs."""
    extractor.load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor.to(device)
    paths = images_below(folder)
    # Drawn, because paths are in order of size.
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:features])
    kept = np.empty((len(chosen), extractor.dimension), np.float32)

    def chunks() -> Iterator[np.ndarray]:
        start = 0
        with tqdm(total=len(paths), unit="image") as bar:
            for batch in batches(paths, batch_size):
                rows = extractor(batch.to(device)).cpu().numpy()
                first, last = np.searchsorted(chosen, [start, start + len(rows)])
                kept[first:last] = rows[chosen[first:last] - start]
                start += len(rows)
                bar.update(len(rows))
                yield rows

    moments = Moments.of(chunks())
    source = f"{folder.resolve().name}, {len(paths)} images"
    return ReferenceStatistics(moments, extractor.protocol, extractor.digest(), source, kept if len(chosen) else None)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="pytorch-fid")
    parser.add_argument("--weights", help="Inception weights; by default the usual download cache")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--features", type=int, default=10_000, help="images whose features are kept; 0 for none")
    options = parser.parse_args(arguments)
    try:
        shapes = options.protocol == ShapeFeatures.protocol
        extractor = ShapeFeatures() if shapes else Inception(options.protocol, options.weights)
        reference = reference_of(options.folder, extractor, options.batch_size, options.features)
    except InputError as error:
        sys.exit(str(error))
    reference.save(options.output)
    print(f"{options.output}: n = {reference.moments.n}, {reference.protocol}, weights sha256 {reference.sha256}")


if __name__ == "__main__":
    main()
