"""Multi-label metrics against scikit-learn."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import evaluate
from bigain.metrics.multilabel import MeanAveragePrecision, Top1Precision, average_precision
from bigain.runs.records import ImageRecord

CLASSES = 7


def multilabel_metrics(records, classes=CLASSES):
    space = ClassSpace([""] * classes, [""] * classes, None, multilabel=True)
    return evaluate([Top1Precision(), MeanAveragePrecision()], records, space)[0]


def record(name, errors, labels, prediction=None):
    """An image with an error for every class and every trial, all classes tried equally. `errors[class][trial]`."""
    pairs = [(k, j) for k, of_class in enumerate(errors) for j in range(len(of_class))]
    best = min(range(len(errors)), key=lambda k: sum(errors[k])) if prediction is None else prediction
    return ImageRecord(
        image_id=name,
        label=sorted(labels),
        prediction=best,
        classes=[k for k, _ in pairs],
        trials=[j for _, j in pairs],
        timesteps=[50 * j for _, j in pairs],
        errors=[errors[k][j] for k, j in pairs],
        survivors=[[best]],
        seconds=0.1,
    )


def with_further_trials(image, classes, trials, draw):
    """The image after a second stage that tried only some classes, with errors that would change every ranking."""
    pairs = [(k, j) for k in classes for j in trials]
    return replace(
        image,
        classes=[*image.classes, *(k for k, _ in pairs)],
        trials=[*image.trials, *(j for _, j in pairs)],
        timesteps=[*image.timesteps, *(50 * j for _, j in pairs)],
        errors=[*image.errors, *(100 * draw.random() for _ in pairs)],
        survivors=[list(classes), [image.prediction]],
    )


def random_records(seed, n=30, coarse=False, unlabelled=0):
    """Images whose errors have levels of their own; with `coarse`, many classes of an image tie."""
    draw = random.Random(seed)
    records = []
    for i in range(n):
        level = draw.uniform(0, 10)
        steps = [draw.randrange(3) / 4 if coarse else draw.random() for _ in range(CLASSES)]
        wiggle = [0.0, 0.25, -0.25]
        errors = [[(round(4 * level) / 4 if coarse else level) + step + w for w in wiggle] for step in steps]
        labels = draw.sample(range(CLASSES), draw.randint(1, 3)) if i >= unlabelled else []
        records.append(record(f"{i}", errors, labels))
    return records


def loop_scores(image):
    """Minus the mean error on the trials all classes have, counted from the mean of the classes."""
    errors = dict(zip(zip(image.classes, image.trials, strict=True), image.errors, strict=True))
    shared = [j for j in sorted(set(image.trials)) if all((k, j) in errors for k in range(CLASSES))]
    means = [sum(errors[k, j] for j in shared) / len(shared) for k in range(CLASSES)]
    return [sum(means) / CLASSES - mean for mean in means]


def table(records):
    """Scores and truth of the labelled images, images by classes."""
    labelled = [image for image in records if image.labels]
    return [loop_scores(image) for image in labelled], [
        [k in image.labels for k in range(CLASSES)] for image in labelled
    ]


def columns(rows):
    return list(zip(*rows, strict=True))


def rankings(ties):
    generator = np.random.default_rng(5)
    scores = generator.integers(0, 4, (40, 12)) / 4 if ties else generator.normal(size=(40, 12))
    truth = generator.random((40, 12)) < 0.3
    truth[:, 0] |= ~truth.any(axis=1)
    return scores, truth


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision(ties):
    scores, truth = rankings(ties)
    expected = [average_precision_score(hits, row) for row, hits in zip(scores, truth, strict=True)]
    assert average_precision(scores, truth)(np.ones(12)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_repetitions(ties):
    scores, truth = rankings(ties)
    counts = np.random.default_rng(1).integers(0, 4, scores.shape[1])
    repeated = average_precision(np.repeat(scores, counts, axis=1), np.repeat(truth, counts, axis=1))(
        np.ones(counts.sum())
    )
    assert np.isnan(repeated).any() or not ties
    assert average_precision(scores, truth)(counts.astype(float)) == pytest.approx(repeated, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("coarse", [False, True])
def test_average_precision_of_classes_and_of_images(coarse):
    records = random_records(0, coarse=coarse)
    rows = table(records)
    scores, truth = map(columns, rows)
    metrics = multilabel_metrics(records)
    of_classes = [average_precision_score(truth[k], scores[k]) for k in range(CLASSES) if any(truth[k])]
    assert metrics["map_macro"]["value"] == pytest.approx(np.mean(of_classes), abs=1e-12)
    of_images = [average_precision_score(hits, row) for row, hits in zip(*rows, strict=True)]
    assert metrics["map_sample"]["value"] == pytest.approx(np.mean(of_images), abs=1e-12)


@pytest.mark.parametrize("unlabelled", [0, 4])
def test_only_trials_that_all_classes_share_count(unlabelled):
    """Survivors of a staged run have more trials; their errors there say nothing about the classes without any."""
    records = random_records(2, unlabelled=unlabelled)
    draw = random.Random(0)
    staged = [with_further_trials(image, draw.sample(range(CLASSES), 3), [3, 4, 9], draw) for image in records]
    metrics, first_stage = multilabel_metrics(staged), multilabel_metrics(records)
    released = metrics.pop("map_released")
    assert first_stage.pop("map_released") == first_stage["map_sample"]
    assert metrics == first_stage
    # The release ranks each class by the mean of its own errors.
    precisions = []
    for image in (image for image in staged if image.labels):
        own = [[e for k, e in zip(image.classes, image.errors, strict=True) if k == label] for label in range(CLASSES)]
        means = [-sum(errors) / len(errors) for errors in own]
        precisions.append(average_precision_score([k in image.labels for k in range(CLASSES)], means))
    assert released["value"] == pytest.approx(np.mean(precisions), abs=1e-12)
    assert abs(released["value"] - metrics["map_sample"]["value"]) > 0.01


def test_unlabelled_images_are_left_out_and_counted_in_a_metric_of_their_own():
    records = random_records(4, unlabelled=5)
    metrics = multilabel_metrics(records)
    everything = metrics.pop("top1_precision_all")
    assert metrics == multilabel_metrics(records[5:])
    assert (metrics["top1_precision"]["n"], everything["n"]) == (25, 30)
    assert everything["value"] * 30 == pytest.approx(metrics["top1_precision"]["value"] * 25)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_intervals(n):
    metrics = multilabel_metrics(random_records(6, n))
    for estimate in metrics.values():
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        assert estimate["n"] == n
    assert metrics == multilabel_metrics(random_records(6, n))
