"""Metrics of features, against scikit-learn and sums written out."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import evaluate, jackknife_error
from bigain.metrics.linear_probe import STRENGTHS, LinearProbe, fit
from bigain.metrics.representation import Cka, Cosine, EffectiveRank, HighFrequency, NearestNeighbours, column
from bigain.runs.records import FeatureRecord

SPACE = ClassSpace(("a", "b", "c"), ("a", "b", "c"), None, factors={"odd": [0, 1, 0]})
RANDOM = np.random.default_rng(0)
LABELS = np.arange(40) % 3


def records_of(**columns):
    """Records with features by name, in the order of their ids."""
    records = [FeatureRecord(f"{i:03d}", [int(LABELS[i])], 0.1, {}, {}) for i in range(len(columns["s0"]))]
    for j, (name, rows) in enumerate(columns.items()):
        for i, record in enumerate(records):
            record.features[f"{name[1:]}@7"] = rows[i].astype(np.float32)
            record.high_frequency[f"{name[1:]}@7"] = 0.1 * (j + 1) + 0.001 * i
    return records


def features(d=6, apart=1.0):
    return (RANDOM.normal(size=(40, d)) + apart * np.eye(3, d)[LABELS] + 30).astype(np.float32)


def estimates(metric, records):
    found, missing = evaluate([metric], records, SPACE)
    assert not missing
    return found


def test_neighbours_vote_as_in_scikit_learn():
    x, metric = features(), NearestNeighbours()
    metric.neighbours = 5
    found = estimates(metric, records_of(s0=x))
    theirs = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    # The mean of all images, as ours.
    expected = cross_val_predict(theirs, StandardScaler(with_std=False).fit_transform(x), LABELS, cv=LeaveOneOut())
    assert metric.predictions["knn"].tolist() == expected.tolist()
    right = float((expected == LABELS).mean())
    assert 0.4 < right < 1
    assert found["knn"]["value"] == right
    odd = np.array(SPACE.factors["odd"])
    assert found["knn_odd"]["value"] == float((odd[expected] == odd[LABELS]).mean())
    assert found["knn"]["low"] < right < found["knn"]["high"]
    assert found["knn"]["n"] == 40


def test_several_sites_are_reported_together_and_each():
    near, far = features(apart=6.0), 100 * features(apart=0.0)
    found = estimates(NearestNeighbours(), records_of(s0=near, s1=far))
    assert {*found} == {"knn", "knn_odd", "knn[0@7]", "knn[1@7]"}
    # Each counts alike, whatever its scale.
    assert found["knn[0@7]"]["value"] > 0.9
    assert found["knn"]["value"] > 0.9 > found["knn[1@7]"]["value"]
    shares = estimates(HighFrequency(), records_of(s0=near, s1=far))
    assert [shares[f"high_frequency{end}"]["value"] for end in ("[0@7]", "[1@7]", "")] == pytest.approx(
        [0.1195, 0.2195, 0.1695]
    )


def alignment(x, y):
    """Linear CKA from the Gram matrices of all images."""
    centre = np.eye(len(x)) - 1 / len(x)
    mine, theirs = (centre @ (z @ z.T) @ centre for z in (x, y))
    return (mine * theirs).sum() / np.sqrt((mine * mine).sum() * (theirs * theirs).sum())


# With fewer and with more channels than images.
@pytest.mark.parametrize("d", [5, 60])
def test_alignment_and_its_jackknife_are_those_of_gram_matrices(d):
    x = features(d)
    y = (x @ RANDOM.normal(size=(d, d)) + 5 * RANDOM.normal(size=(40, d))).astype(np.float32)
    mine, others = records_of(s0=x), {record.image_id: record for record in records_of(s0=y)}
    found = estimates(Cka(others), mine)["cka"]
    x, y = x.astype(np.float64), y.astype(np.float64)
    assert found["value"] == pytest.approx(alignment(x, y), rel=1e-9)
    without = [alignment(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(40)]
    assert found["high"] - found["value"] == pytest.approx(1.96 * jackknife_error(np.array(without)), rel=1e-4)
    # Rotation and scale do not count for CKA, but they do for the cosine.
    turned = 3 * x @ np.linalg.qr(RANDOM.normal(size=(d, d)))[0]
    turned_records = {record.image_id: record for record in records_of(s0=turned)}
    assert estimates(Cka(turned_records), mine)["cka"]["value"] == pytest.approx(1, abs=1e-6)
    assert estimates(Cosine(turned_records), mine)["cosine"]["value"] < 0.9
    expected = float(np.diag(cosine_similarity(x, y)).mean())
    assert estimates(Cosine(others), mine)["cosine"]["value"] == pytest.approx(expected, rel=1e-6)


def rank(x):
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values[values > 1e-9] / values.sum()
    return np.exp(-(share * np.log(share)).sum())


def test_effective_rank_and_its_interval():
    x = features() * np.array([1, 1, 1, 4, 0.2, 0])
    found = estimates(EffectiveRank(), records_of(s0=x))["effective_rank"]
    x = x.astype(np.float32).astype(np.float64)
    assert 1 < found["value"] < 5
    assert found["value"] == pytest.approx(rank(x), rel=1e-9)
    jackknife = jackknife_error(np.array([rank(np.delete(x, i, 0)) for i in range(40)]))
    assert found["high"] - found["value"] == pytest.approx(1.96 * jackknife, rel=0.15)
    constant = estimates(EffectiveRank(), records_of(s0=np.ones((4, 3))))["effective_rank"]
    assert constant["value"] == 1


def test_one_image_or_images_without_labels_have_no_estimate():
    alone = records_of(s0=features()[:1])
    assert "two images" in evaluate([EffectiveRank()], alone, SPACE)[1]["effective_rank"]
    several = records_of(s0=features())
    several[3].labels = [0, 1]
    assert evaluate([NearestNeighbours()], several, SPACE) == ({}, {})
    different, two_alike = records_of(s0=features()[:3]), records_of(s0=features()[:4])
    assert [record.labels for record in two_alike] == [[0], [1], [2], [0]]
    assert estimates(NearestNeighbours(), two_alike)["knn"]["n"] == 4
    found, missing = evaluate([NearestNeighbours(), EffectiveRank()], different, SPACE)
    assert "no two images have the same class" in missing["knn"]
    assert {*found} == {"effective_rank"}


def probe_of(tmp_path, training, class_names=SPACE.names):
    """A linear probe on a run directory with these records."""
    (tmp_path / "predictions").mkdir(exist_ok=True)
    (tmp_path / "predictions/rank-0.jsonl").write_text("".join(f"{record.to_json()}\n" for record in training))
    (tmp_path / "predictions/classes.json").write_text(json.dumps({"names": class_names}))
    (tmp_path / "results.json").touch()
    return LinearProbe(tmp_path, SPACE.names)


# As Lightning ends a run.
@torch.inference_mode()
def test_the_linear_probe_is_logistic_regression_and_its_penalty_is_chosen_on_a_fifth(tmp_path):
    training, x = records_of(s0=features(apart=1.5)), features(apart=1.5)
    metric = probe_of(tmp_path, training)
    found = estimates(metric, records_of(s0=x))["linear_probe"]
    scaler = StandardScaler().fit(column(training, "0@7"))
    scaled, held = scaler.transform(column(training, "0@7")), np.array(metric.held_out())
    assert held.sum() == 8

    def fitted(rows, strength):
        model = LogisticRegression(C=1 / (strength * rows.sum()), tol=1e-9, max_iter=5000)
        return model.fit(scaled[rows], LABELS[rows])

    whole = np.ones(40, bool)
    with torch.inference_mode(False):
        ours = fit(torch.from_numpy(scaled), torch.from_numpy(LABELS), torch.zeros(7, 3, dtype=torch.float64), 1e-2)
    np.testing.assert_allclose(ours[:-1].T, fitted(whole, 1e-2).coef_, atol=5e-4)
    right = [fitted(~held, strength).score(scaled[held], LABELS[held]) for strength in STRENGTHS]
    expected = fitted(whole, STRENGTHS[int(np.argmax(right))]).predict(scaler.transform(x))
    assert metric.predictions["linear_probe"].tolist() == expected.tolist()
    assert found["value"] == float((expected == LABELS).mean()) > 0.5


def test_training_images_that_cannot_be_are_named(tmp_path):
    training, evaluated = records_of(s0=features()), records_of(s0=features())
    assert "has no features" in LinearProbe(tmp_path / "absent", SPACE.names).incomplete(evaluated)
    assert "classes of the training split" in probe_of(tmp_path, training, ("a", "c", "b")).incomplete(evaluated)
    without = [record for record in training if record.labels != [1]]
    assert "no image of 'b', which is evaluated" in probe_of(tmp_path, without).incomplete(evaluated)
    assert probe_of(tmp_path, training).incomplete(evaluated) is None
    training[3].digest = evaluated[7].digest = "same"
    assert "1 training image, such as 003, evaluated as well" in probe_of(tmp_path, training).incomplete(evaluated)
