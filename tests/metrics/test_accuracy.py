"""Wilson intervals against published numbers and scipy; accuracies and agreement."""

import random
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from bigain.data.class_space import ClassSpace
from bigain.data.shapes import CLASS_NAMES, render_shapes
from bigain.metrics import Inception, ShapeFeatures
from bigain.metrics.accuracy import Accuracy, Agreement, accuracies, confusion_matrix
from bigain.metrics.base import evaluate, proportion
from bigain.runs.records import ImageRecord, SampleRecord

COUNTS = [(k, n) for n in (1, 2, 7, 20, 263) for k in sorted({0, 1, n // 3, n // 2, n - 1, n})]
FACTORS = {"shape": [0, 0, 1, 1], "fill": [0, 1, 0, 1]}


def wilson_interval(correct, n):
    estimate = proportion(correct, n)
    assert (estimate["value"], estimate["n"]) == (correct / n, n)
    return estimate["low"], estimate["high"]


@pytest.mark.parametrize(("correct", "n"), COUNTS)
def test_wilson_is_that_of_scipy_and_stays_in_the_unit_interval(correct, n):
    low, high = wilson_interval(correct, n)
    assert (low, high) == pytest.approx(binomtest(correct, n).proportion_ci(method="wilson"), abs=1e-12)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_counting(seed):
    draw = random.Random(seed)
    labels, predictions = ([draw.randrange(4) for _ in range(50)] for _ in range(2))
    results = accuracies(labels, predictions, FACTORS)
    pairs = list(zip(labels, predictions, strict=True))
    assert list(results) == ["top1", "shape", "fill"]
    assert results["top1"] == proportion(len([1 for a, b in pairs if a == b]), 50)
    assert results["shape"] == proportion(len([1 for a, b in pairs if a // 2 == b // 2]), 50)
    assert results["fill"] == proportion(len([1 for a, b in pairs if a % 2 == b % 2]), 50)


def test_classes_with_one_name_count_as_one():
    """The last two classes have one name, and tie."""
    records = [ImageRecord(f"{i}", 3, prediction, [], [], [], [], [], 0.1) for i, prediction in enumerate((3, 2, 0))]
    space = ClassSpace(["a", "b", "c", "c"], [""] * 4, None)
    estimates = Accuracy().estimates(records, space)
    assert {name: estimate["value"] for name, estimate in estimates.items()} == {"top1": 1 / 3, "top1_merged": 2 / 3}


@pytest.mark.parametrize("classes", [2, 5, 37])
def test_confusion_equals_counting(classes):
    draw = random.Random(classes)
    labels, predictions = ([draw.randrange(classes) for _ in range(80)] for _ in range(2))
    expected = [[0] * classes for _ in range(classes)]
    for a, b in zip(labels, predictions, strict=True):
        expected[a][b] += 1
    matrix = confusion_matrix(labels, predictions, classes)
    assert matrix == expected
    assert all(type(count) is int for row in matrix for count in row)
    top1 = accuracies(labels, predictions, {})["top1"]["value"]
    assert sum(matrix[c][c] for c in range(classes)) / 80 == top1


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
