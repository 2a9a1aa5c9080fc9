"""The embedded feature extractor: what it refuses, that it repeats itself, and what its features react to."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bigain.data.shapes import CLASS_NAMES, IMAGE_SIZE, render_shapes
from bigain.errors import InputError
from bigain.metrics import shape_features
from bigain.metrics.shape_features import CONFIG, WEIGHTS, ShapeFeatures

ASSET = Path(str(resources.files("bigain"))) / "assets/shapes_features"


def quantise(images):
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def drawn():
    images, labels = render_shapes(torch.arange(64), "test")
    return quantise(images), labels


@pytest.fixture(scope="module")
def extractor():
    return ShapeFeatures()


def test_the_asset_is_small_half_precision_and_what_its_configuration_names(extractor):
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 2**20
    assert {tensor.dtype for tensor in load_file(ASSET / WEIGHTS).values()} == {torch.float16}
    config = json.loads((ASSET / CONFIG).read_text(encoding="utf-8"))
    assert extractor.digest() == config["sha256"]
    assert extractor.class_names == CLASS_NAMES
    assert shape_features.IMAGE_SIZE == IMAGE_SIZE
    assert config["widths"][-1] == ShapeFeatures.dimension


@pytest.mark.parametrize("rows", [1, 7])
def test_features_do_not_depend_on_the_batch(extractor, drawn, rows):
    images = drawn[0]
    together = extractor(images)
    apart = torch.cat([extractor(chunk) for chunk in images.split(rows)])
    assert (together - apart).abs().max() < 1e-5 * together.abs().max()


def test_features_are_float32_in_any_precision(extractor, drawn):
    """Lightning's true half precision sets the default dtype around each step."""
    images, other, state = drawn[0][:8], ShapeFeatures(), torch.get_rng_state()
    # Constructing reads nothing.
    assert not list(other.parameters())
    torch.set_default_dtype(torch.bfloat16)
    try:
        other.load()
        torch.nn.ModuleList([other]).half().to(torch.bfloat16).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = other(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(features, extractor(images))
    assert torch.equal(torch.get_rng_state(), state)
    assert (features.dtype, features.requires_grad, other.training) == (torch.float32, False, False)
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_it_knows_the_classes(extractor, drawn):
    """Measured on 10,000 images: see the card. Of 64, one may be wrong on another processor."""
    images, labels = drawn
    features = extractor(images)
    assert features.shape == (64, extractor.dimension) == (64, 64)
    # A feature that never moves would make the covariance singular.
    assert (features.std(dim=0) > 1e-3).all()
    assert (extractor.classes_of(features) == labels).sum() >= 63


def test_other_images_are_refused(extractor):
    with pytest.raises(InputError, match=r"images of 32 x 32 px, not of 64 x 48 px; choose another extractor$"):
        extractor(torch.zeros(2, 3, 48, 64, dtype=torch.uint8))
    for images in (torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected uint8 images \(b, 3, h, w\)"):
            extractor(images)
