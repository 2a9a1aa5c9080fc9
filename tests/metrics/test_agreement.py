"""Agreement of generated images with the classes they were generated for."""

from dataclasses import replace

import pytest
import torch

from bigain.data.class_space import ClassSpace
from bigain.data.shape_renderer import CLASS_NAMES, render_shapes
from bigain.metrics import Inception, ShapeFeatures
from bigain.metrics.agreement import Agreement
from bigain.metrics.base import evaluate
from bigain.runs.records import SampleRecord


@pytest.fixture(scope="module")
def extractor():
    return ShapeFeatures()


@pytest.fixture(scope="module")
def records(extractor):
    """One image of each class."""
    images, _ = render_shapes(torch.arange(16), "test")
    rows = extractor((images * 255).round().to(torch.uint8)).numpy()
    return [SampleRecord(f"{i}", [i], "", 0.1, row) for i, row in enumerate(rows)]


def test_agreement_is_of_classes_and_of_their_factors(extractor, records):
    space = ClassSpace(CLASS_NAMES, CLASS_NAMES, None, {"fill": [label % 4 for label in range(16)]})
    # Three images show a different class than the one asked for, one of them also a different fill.
    wrong = [replace(record, labels=[label]) for record, label in zip(records, (4, 5, 3), strict=False)]
    estimates, _ = evaluate([Agreement(extractor)], [*wrong, *records[3:]], space)
    assert list(estimates) == ["agreement[shapes-features]", "agreement_fill[shapes-features]"]
    assert [estimate["value"] for estimate in estimates.values()] == [13 / 16, 15 / 16]
    assert all(estimate["low"] < estimate["value"] < estimate["high"] for estimate in estimates.values())
    assert all(estimate["n"] == 16 for estimate in estimates.values())


def test_there_is_no_agreement_on_different_classes(extractor, records):
    space = ClassSpace(CLASS_NAMES, CLASS_NAMES, None)
    assert Agreement(extractor).estimates(records, ClassSpace(CLASS_NAMES[::-1], CLASS_NAMES, None)) == {}
    assert Agreement(Inception("pytorch-fid")).estimates(records, space) == {}
    assert Agreement(extractor).estimates([replace(records[0], labels=[0, 1]), *records[1:]], space) == {}
    reason = "1 image without features; run bigain score"
    assert evaluate([Agreement(extractor)], [replace(records[0], features=None), *records[1:]], space) == (
        {},
        {"distance": reason},
    )
