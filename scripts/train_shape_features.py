"""Train the feature extractor of ShapeTextures, a small classifier, and save it as a folder.

    python scripts/train_shape_features.py --output runs/shapes_features
    python scripts/train_shape_features.py --output runs/shapes_features --measure

It trains on `train`, prints its accuracy on `val`, and is repeatable: the seed determines everything on one kind of
processor. `--measure` trains nothing and prints the numbers in `bigain/assets/README.md`, which describes the shipped
extractor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from safetensors.torch import save
from shape_batches import shape_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bigain.data.shapes import CLASS_NAMES, FILLS, Split, render_shapes
from bigain.metrics.accuracy import accuracies
from bigain.metrics.frechet import frechet_distance
from bigain.metrics.reference import Moments
from bigain.metrics.shape_features import CONFIG, DIMENSION, WEIGHTS, ShapeNetwork, read_network

WIDTHS = (24, 32, 64, 64, DIMENSION)
# Standard deviations of the strongest noise, in units of the pixel range, and of the widest blur, in pixels.
NOISE, BLUR = 0.15, 1.5
FACTORS = {"shape": [c // len(FILLS) for c in range(16)], "fill": [c % len(FILLS) for c in range(16)]}


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by its own width, as a product with one matrix per axis.

    Args:
        images: `(b, c, s, s)`.
        sigma: Standard deviations in pixels, positive. `(b,)`.
    """
    axis = torch.arange(images.shape[-1], dtype=images.dtype)
    distance = (axis[:, None] - axis[None, :]).square() / 2
    # The softmax normalises the rows, at the borders as well.
    weights = (-distance / sigma.square()[:, None, None]).softmax(-1)[:, None]
    return weights @ images @ weights.mT


def quantise(images: Tensor) -> Tensor:
    """Map [0, 1] to whole numbers in [0, 255], as in a file."""
    return (images * 255).round().clamp(0, 255)


class Training(LightningModule):
    """Learns classes, and the appearance of each image: levels of blur and noise, mean and spread of the colours.

    A classifier learns to ignore what its classes share and, if they occur in training, blur and noise; its distance
    would ignore them as well. The second head, which is not saved, makes the features describe them.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.network = ShapeNetwork(WIDTHS, len(CLASS_NAMES))
        self.appearance = nn.Linear(DIMENSION, 8)
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        colours = [images.mean(dim=(2, 3)), images.std(dim=(2, 3))]
        # Half of the images have no blur, half no noise, since measured images are mostly clean.
        levels = torch.rand(len(images), 2) * (torch.rand(len(images), 2) < 0.5)
        images = blur(images, (BLUR * levels[:, 0]).clamp(min=0.05))
        images = images + NOISE * levels[:, 1, None, None, None] * torch.randn_like(images)
        features = self.network.features(quantise(images))
        loss = F.cross_entropy(self.network.head(features), labels)
        self.log("loss", loss, prog_bar=True)
        return loss + 4 * F.mse_loss(self.appearance(features), torch.cat([levels, *colours], dim=1))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return shape_batches(128, self.steps)


def draw(split: Split, images: int) -> Tensor:
    """Render images in [0, 1], classes in turn. `(n, 3, 32, 32)`."""
    return torch.cat([render_shapes(chunk, split)[0] for chunk in torch.arange(images).split(256)])


@torch.inference_mode()
def accuracy(network: ShapeNetwork, split: Split, images: int = 10_000) -> str:
    """Return the accuracy on undegraded images, as a line of text."""
    predictions = torch.cat([network(quantise(batch)).argmax(1) for batch in draw(split, images).split(256)])
    labels = torch.arange(images) % len(CLASS_NAMES)
    estimates = accuracies(labels.tolist(), predictions.tolist(), FACTORS)
    numbers = (f"{name} {100 * e['value']:.2f} (from {100 * e['low']:.2f})" for name, e in estimates.items())
    return f"{split}, {images} images, accuracy in %: {', '.join(numbers)}"


def shuffled(images: Tensor, share: float) -> Tensor:
    """Exchange that share of an image's 4x4 patches at random: all colours stay, shapes and fills break."""
    generator = torch.Generator().manual_seed(0)
    patches = F.unfold(images, 4, stride=4)
    for row in patches:
        chosen = torch.randperm(row.shape[1], generator=generator)[: round(share * row.shape[1])]
        row[:, chosen] = row[:, chosen[torch.randperm(len(chosen), generator=generator)]]
    return F.fold(patches, images.shape[-2:], 4, stride=4)


@torch.inference_mode()
def print_distances(network: ShapeNetwork) -> None:
    """Frechet distances of 2,000 images of `val`, ever more degraded, to 2,000 of `test`."""

    def moments(images: Tensor) -> Moments:
        return Moments.of(network.features(quantise(batch)).numpy() for batch in images.split(256))

    images, reference = draw("val", 2000), moments(draw("test", 2000))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(len(images)) % len(CLASS_NAMES)
    kinds = {
        "noise, sd of the pixel range": (lambda sd: images + sd * noise, (0.01, 0.02, 0.05, 0.1, 0.2)),
        "blur, sd in px": (lambda sd: blur(images, torch.full(classes.shape, sd)), (0.4, 0.5, 0.75, 1.0, 2.0)),
        "shuffled patches, share": (lambda share: shuffled(images, share), (0.05, 0.1, 0.25, 0.5, 1.0)),
        "classes left out": (lambda k: images[classes >= k], (1, 2, 4, 8)),
        "towards grey, share": (lambda a: images.lerp(images.mean(1, keepdim=True), a), (0.1, 0.25, 0.5, 1.0)),
        "brighter, of the pixel range": (lambda a: images + a, (0.02, 0.05, 0.1, 0.2)),
    }
    for n in (2000, 1000, 500, 250):
        distances = [frechet_distance(moments(chunk), reference) for chunk in images.split(n)]
        spread = f"{min(distances):.3f} to {max(distances):.3f}"
        print(f"undegraded, {n} images: {spread} in {len(distances)} sets", flush=True)
    for name, (change, levels) in kinds.items():
        texts = (f"{level}: {frechet_distance(moments(change(level)), reference):.3f}" for level in levels)
        print(f"{name}  {'  '.join(texts)}", flush=True)


def export(network: ShapeNetwork, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.half().contiguous() for name, tensor in network.state_dict().items()})
    (folder / WEIGHTS).write_bytes(data)
    config = {"widths": WIDTHS, "class_names": CLASS_NAMES, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--measure", action="store_true", help="train nothing; measure what OUTPUT holds")
    args = parser.parse_args()
    if args.measure:
        network, _, _ = read_network(args.output)
        print(accuracy(network, "test"), flush=True)
        print_distances(network)
        return
    torch.manual_seed(0)
    module = Training(args.steps)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        callbacks=[TQDMProgressBar(refresh_rate=50)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    export(module.network, args.output)
    print(accuracy(module.network.eval(), "val"))


if __name__ == "__main__":
    main()
