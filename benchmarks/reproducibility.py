"""Which bits change with batches, order, forwards or threads: `python benchmarks/reproducibility.py [--images 5]`.

Classifies the same images repeatedly with the embedded models and counts errors that differ in any bit.
"""

import argparse
import itertools
import logging
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from bigain.backbones import Backbone, DiT, StableDiffusion
from bigain.compressors import LGTM, Compressor, SiTo, ToMe
from bigain.data import ShapeTextures
from bigain.modules import DiffusionClassifier
from bigain.runs.records import ImageRecord

MODELS: dict[str, Callable[[], Backbone]] = {
    "DiT": lambda: DiT("shapes_dit"),
    "U-Net": lambda: StableDiffusion("shapes_unet"),
}
COMPRESSORS: dict[str, Callable[[], Sequence[Compressor]]] = {
    "none": lambda: [],
    "ToMe": lambda: [ToMe(ratio=0.5)],
    "SiTo": lambda: [SiTo(ratio=0.5)],
    "LGTM": lambda: [LGTM(ratio=0.5)],
}


@dataclass(frozen=True)
class Way:
    """One way to run the same classification."""

    batch: int = 16
    rows: int = 64
    shuffled: bool = False
    threads: int = 1

    def __str__(self) -> str:
        order = ", shuffled" if self.shuffled else ""
        return f"batch {self.batch}, rows {self.rows}{order}, {self.threads} thread{'s' if self.threads > 1 else ''}"


WAYS = [
    *(Way(batch, rows) for batch, rows in itertools.product((1, 5, 16), (8, 64)) if (batch, rows) != (16, 64)),
    Way(shuffled=True),
    Way(rows=3),
    Way(threads=2),
]


class Shuffled(ShapeTextures):
    """The same items in a different order."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        random.Random(0).shuffle(self.items)


def run(backbone: Backbone, compressors: Sequence[Compressor], precision: Any, images: int, way: Way) -> dict[str, Any]:
    """Return records by image."""
    torch.set_num_threads(way.threads)
    module = DiffusionClassifier(backbone, trials=[1, 2], keep=[3, 1], rows_per_forward=way.rows)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", precision=precision, callbacks=[*compressors], enable_model_summary=False, **quiet
    )
    data = (Shuffled if way.shuffled else ShapeTextures)(images=images, batch_size=way.batch, num_workers=0)
    return {record.image_id: record for batch in trainer.predict(module, datamodule=data) for record in batch}


def compare(records: dict[str, ImageRecord], reference: dict[str, ImageRecord]) -> str:
    """Return how many errors and predictions differ, and the largest relative difference."""
    differ, count, largest, predictions = 0, 0, 0.0, 0
    for image_id, record in records.items():
        expected = reference[image_id]
        predictions += record.prediction != expected.prediction
        errors = dict(zip(zip(expected.classes, expected.trials, strict=True), expected.errors, strict=True))
        for pair, error in zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True):
            if pair in errors:
                count += 1
                differ += error != errors[pair]
                largest = max(largest, abs(error - errors[pair]) / errors[pair])
    if not differ:
        return "equal"
    return f"{differ} of {count}, {largest:.0e}" + (f", {predictions} predictions" if predictions else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| model | precision | compressor |", " | ".join(map(str, WAYS)), "|")
    print("|---" * (3 + len(WAYS)) + "|")
    for model, precision, compressor in itertools.product(MODELS, ("32-true", "bf16-true"), COMPRESSORS):

        def classify(way: Way, model: str = model, precision: str = precision, compressor: str = compressor) -> Any:
            return run(MODELS[model](), COMPRESSORS[compressor](), precision, args.images, way)

        reference = classify(Way())
        cells = [compare(classify(way), reference) for way in WAYS]
        print(f"| {model} | {precision} | {compressor} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
