"""Which metrics a set of images gets, under which names."""

import numpy as np
import pytest
import torch

from bigain.data.class_space import ClassSpace
from bigain.data.images import encode_images
from bigain.data.shape_renderer import CLASS_NAMES, render_shapes
from bigain.errors import InputError
from bigain.metrics.distances import Moments, frechet_distance
from bigain.metrics.fidelity import psnr, ssim
from bigain.metrics.generation import agreement_metrics, distance_metrics, fidelity_metrics
from bigain.metrics.inception import Inception
from bigain.metrics.reference import ReferenceStatistics
from bigain.metrics.shape_features import ShapeFeatures


def features(n=12, d=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def reference(real, kept=True):
    return ReferenceStatistics(Moments.of([real]), "stand-in", features=real if kept else None)


def test_names_carry_the_protocol():
    found = distance_metrics(features(), reference(features(20, seed=1)))
    assert list(found) == [f"{name}[stand-in]" for name in ("frechet", "kernel", "precision", "recall")]
    assert all(estimate["n"] == 12 for estimate in found.values())
    frechet = found["frechet[stand-in]"]
    assert frechet["low"] < frechet["value"] < frechet["high"]


def test_the_frechet_distance_is_that_of_the_moments():
    generated, real = features(), features(20, seed=1)
    found = distance_metrics(generated, reference(real, kept=False))
    assert list(found) == ["frechet[stand-in]"]
    expected = frechet_distance(Moments.of([generated]), Moments.of([real]))
    assert found["frechet[stand-in]"]["value"] == pytest.approx(expected)


def test_wide_features_get_no_interval():
    found = distance_metrics(features(5, 257), reference(features(6, 257, seed=1), kept=False))
    assert found["frechet[stand-in]"]["low"] is None


@pytest.mark.parametrize("kept", [True, False])
def test_few_images_are_no_set(kept):
    with pytest.raises(InputError, match="3 images are too few for a distance; it takes 4"):
        distance_metrics(features(3), reference(features(20, seed=1), kept))


@pytest.fixture
def written(tmp_path):
    """Files of images by name."""

    def write(name, images):
        paths = [tmp_path / f"{name}{i}.png" for i in range(len(images))]
        for path, content in zip(paths, encode_images(images, "png"), strict=True):
            path.write_bytes(content)
        return paths

    return write


def noise(n, size=16, seed=0):
    return torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_fidelity_is_the_mean_over_pairs(written):
    a, b = noise(18), noise(18, seed=1)
    found = fidelity_metrics(list(zip(written("a", a), written("b", b), strict=True)))
    assert found["psnr"]["value"] == pytest.approx(float(psnr(a, b).mean()))
    assert found["ssim"]["value"] == pytest.approx(float(ssim(a, b).mean()))
    assert found["psnr"]["n"] == 18
    assert found["psnr"]["low"] < found["psnr"]["value"] < found["psnr"]["high"]


def test_equal_images_have_no_psnr(written):
    a = noise(3)
    b = torch.cat((a[:2], noise(1, seed=1)))
    found = fidelity_metrics(list(zip(written("a", a), written("b", b), strict=True)))
    assert (found["psnr"]["n"], found["ssim"]["n"]) == (1, 3)
    assert list(fidelity_metrics(list(zip(written("a", a), written("c", a), strict=True)))) == ["ssim"]


def test_sizes_have_to_agree(written):
    with pytest.raises(InputError, match="differ in size"):
        fidelity_metrics(list(zip(written("a", noise(1)), written("b", noise(1, 24)), strict=True)))


@pytest.fixture
def drawn():
    """The extractor, and features of an image of each class."""
    extractor = ShapeFeatures()
    images, _ = render_shapes(torch.arange(16), "test")
    return extractor, extractor((images * 255).round().to(torch.uint8)).numpy()


def test_agreement_is_of_classes_and_of_their_factors(drawn):
    fills = {"fill": [label % 4 for label in range(16)]}
    space = ClassSpace(CLASS_NAMES, CLASS_NAMES, None, fills)
    # Three images are of another class than was asked for, one of them also of another fill.
    asked = [(4,), (5,), (3,), *((label,) for label in range(3, 16))]
    found = agreement_metrics(*drawn, asked, space)
    assert list(found) == ["agreement[shapes-features]", "agreement_fill[shapes-features]"]
    assert [estimate["value"] for estimate in found.values()] == [13 / 16, 15 / 16]
    for estimate in found.values():
        assert estimate["low"] < estimate["value"] < estimate["high"]
        assert estimate["n"] == 16


def test_of_other_classes_there_is_no_agreement(drawn):
    asked = [(label,) for label in range(16)]
    assert agreement_metrics(*drawn, asked, ClassSpace(CLASS_NAMES[::-1], CLASS_NAMES, None)) == {}
    assert agreement_metrics(Inception("pytorch-fid"), features(16), asked, ClassSpace("ab", "ab", None)) == {}
    several = [(0, 1), *asked[1:]]
    assert agreement_metrics(*drawn, several, ClassSpace(CLASS_NAMES, CLASS_NAMES, None)) == {}
