"""Write the statistics of real images that come with the embedded extractor: 2,000 images of the `val` split."""

from pathlib import Path

import numpy as np
import torch

from bigain.data import ShapeTextures
from bigain.metrics import ShapeFeatures
from bigain.metrics.reference import Moments, ReferenceStatistics

IMAGES = 2000
OUTPUT = Path(__file__).parents[1] / "bigain/assets/shapes_features/reference.npz"


def main() -> None:
    torch.set_num_threads(1)
    data = ShapeTextures(images=IMAGES, split="val", batch_size=100)
    data.setup("predict")
    extractor = ShapeFeatures()
    features = np.concatenate([extractor(batch["image"]).numpy() for batch in data.predict_dataloader()])
    source = f"{IMAGES} images of the val split of ShapeTextures"
    ReferenceStatistics(Moments.of([features]), extractor.protocol, extractor.digest(), source, features).save(OUTPUT)
    print(f"{OUTPUT}: {IMAGES} images, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
