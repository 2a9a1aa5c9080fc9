"""ShapeTextures: pure functions of (split, index), balanced, and pinned."""

import hashlib

import pytest
import torch

from bigain.data import ShapeTextures
from bigain.data.shapes import CLASS_NAMES, FILLS, SHAPES, render_shapes
from bigain.errors import InputError

SPLITS = ("train", "val", "test")
# No value of these lies within 6e-4 of a rounding border, so that a last bit of another CPU does not show.
GOLDEN = [
    ("train", 237, "f13430e69aa80697"),
    ("train", 314, "be11be18ba7769d2"),
    ("val", 21, "1f67e7ddf164b870"),
    ("val", 82, "3ccb4e084cfa4529"),
    ("test", 1, "ca1a96f044231802"),
    ("test", 216, "99e34106ce2a47c5"),
    ("test", 6, "6fd8aa8d3a0b333f"),
]


def as_bytes(images):
    return (images * 255).round().to(torch.uint8)


def prepared(**settings):
    data = ShapeTextures(**settings)
    data.setup("predict")
    return data


@pytest.mark.parametrize(("split", "index", "digest"), GOLDEN)
def test_images_are_pinned(split, index, digest):
    """The embedded models were trained on these pixels."""
    data = prepared(images=index + 1, split=split)
    item = data.items[index]
    image = data.read_image(item)
    assert hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() == digest
    drawn, labels = render_shapes(torch.tensor([index]), split)
    assert torch.equal(image, as_bytes(drawn[0]))
    assert (item.image_id, item.labels) == (f"{split}/{index:06d}", tuple(labels.tolist()))


def test_other_images_of_the_batch_do_not_change_pixels():
    indices = torch.arange(48)
    together, labels = render_shapes(indices, "train")
    for start, size in ((0, 1), (7, 1), (31, 17)):
        some, some_labels = render_shapes(indices[start : start + size], "train")
        torch.testing.assert_close(some, together[start : start + size], rtol=0, atol=1e-6)
        assert torch.equal(some_labels, labels[start : start + size])
    backwards, _ = render_shapes(indices.flip(0), "train")
    torch.testing.assert_close(backwards.flip(0), together, rtol=0, atol=1e-6)


def test_splits_are_disjoint():
    images = {split: as_bytes(render_shapes(torch.arange(64), split)[0]) for split in SPLITS}
    assert len({image.numpy().tobytes() for split in SPLITS for image in images[split]}) == 3 * 64
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert (images[first].float() - images[second].float()).abs().mean((1, 2, 3)).min() > 5


def test_names_prompts_and_factors_agree():
    space = ShapeTextures(prompt="one {} here").class_space
    assert space.names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == len(space) == 16
    assert space.indices is None
    for label, name in enumerate(CLASS_NAMES):
        assert space.prompts[label] == f"one {name} here"
        assert name == f"{FILLS[space.factors['fill'][label]]} {SHAPES[space.factors['shape'][label]]}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "images must be 1 to 10,000,000, not 0"),
        ({"images": 10**30}, "images must be 1 to"),
        # Not drawn from a fourth random stream.
        ({"split": "tset"}, "split must be one of train, val, test, not 'tset'"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ShapeTextures(**settings)
