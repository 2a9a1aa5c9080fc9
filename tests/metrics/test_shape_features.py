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
from bigain.metrics.shape_features import CONFIG, WEIGHTS, ShapeFeatures, ShapeNetwork, read_network

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


def test_damaged_weights_are_reported(tmp_path):
    for path in ASSET.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    read_network(tmp_path)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(InputError, match=r"has sha256 .*reinstall bigain"):
        read_network(tmp_path)


def test_the_network_is_that_of_the_definition(extractor, drawn):
    """The same layers written out, on one image."""
    image = drawn[0][:1]
    state = {name: tensor.float() for name, tensor in load_file(ASSET / WEIGHTS).items()}
    x = image.float() / 127.5 - 1
    for i, stride in enumerate((1, 2, 2, 2, 1)):
        x = torch.nn.functional.conv2d(x, state[f"blocks.{i}.0.weight"], stride=stride, padding=1)
        x = torch.nn.functional.group_norm(x, 8, state[f"blocks.{i}.1.weight"], state[f"blocks.{i}.1.bias"])
        x = x * torch.sigmoid(x)
    feature = x.mean(dim=(2, 3))
    torch.testing.assert_close(extractor(image), feature, rtol=1e-4, atol=1e-5)
    logits = feature @ state["head.weight"].T + state["head.bias"]
    assert torch.equal(extractor.classes_of(feature), logits.argmax(1))
    assert isinstance(extractor.network, ShapeNetwork)
