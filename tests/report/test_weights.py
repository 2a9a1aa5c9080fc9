"""Weights over timesteps on planted errors: one timestep tells the classes apart, the others are noise."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import classification, error_line

from bigain.commands.main import main
from bigain.report.explain.weights import fit

IMAGES, CLASSES, TIMES = 200, 4, [100, 300, 500, 700, 900]


def planted(seed=0, informative=2):
    make = np.random.default_rng(seed)
    errors, label = make.normal(1, 0.5, (IMAGES, CLASSES, 5)), make.integers(0, CLASSES, IMAGES)
    errors[..., informative] = make.normal(0.1, 0.01, (IMAGES, CLASSES))
    errors[np.arange(IMAGES), label, informative] -= 0.03
    return errors, label


def run(path, errors, label, times=TIMES, **changes):
    timesteps = np.tile(np.int16(times), (len(label), 1))
    prediction = errors.mean(2).argmin(1)
    columns = {"errors": errors.astype(np.float32), "timesteps": timesteps}
    return classification(path, prediction == label, label=label, prediction=prediction, columns=columns, **changes)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("full", *planted())


def test_the_informative_timestep_is_found():
    errors, label = planted()
    weights = fit(errors, label)
    assert weights.mean() == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights[2] > 4.5
    # At the minimum of the convex loss no weight can improve it: against coarse steps in the scale of the data.
    assert (errors @ weights).argmin(1).tolist() == pytest.approx(errors[..., 2].argmin(1).tolist(), abs=3)


def test_accuracies_are_of_images_that_were_not_fitted_to(capsys):
    Path("one.json").write_text("[0, 0, 1, 0, 0]")
    names = ["uniform", "fitted", "one.json"]
    assert main(["explain", "full", "--weights", *names, "--json", "out.json"]) == 0
    text = capsys.readouterr().out
    assert "its difference to uniform weights on the same 200 images, in points" in text
    uniform, fitted, one = json.loads(Path("out.json").read_text())["explanations"][0]["weights"]
    errors, label = planted()
    assert uniform["accuracy"] == pytest.approx(100 * (errors.mean(2).argmin(1) == label).mean())
    assert {uniform[name] for name in ("difference", "low", "high", "p")} == {None}
    assert re.search(r"^ +uniform +\d+ +- +- +- +- +1 +1 ", text, re.MULTILINE)
    assert one["accuracy"] == pytest.approx(100 * (errors[..., 2].argmin(1) == label).mean())
    assert fitted["accuracy"] > 95
    assert fitted["low"] > 0
    assert fitted["p"] < 0.01
    # Labels without relation to the errors: what is fitted to some images is worth nothing on others.
    errors, label = planted(1)
    run("random", errors[:30], np.random.default_rng(2).integers(0, CLASSES, 30))
    assert main(["explain", "random", "--weights", "fitted", "--json", "out.json"]) == 0
    (chance,) = json.loads(Path("out.json").read_text())["explanations"][0]["weights"]
    assert chance["accuracy"] < 50


def test_errors_that_mislead_have_equal_weights(capsys):
    errors, label = planted()
    # The error of the true class is the largest.
    errors[np.arange(IMAGES), label] = 5
    assert fit(errors, label).tolist() == [1] * 5
    run("few", errors[:4], label[:4])
    assert "few has 4 images; fitted weights take 5" in error_line(capsys, "explain", "few", "--weights", "fitted")


def test_noises_of_a_timestep_are_averaged():
    errors, label = planted()
    run("noises", np.repeat(errors, 2, 2) + [0.001, -0.001] * 5, label, np.repeat(TIMES, 2))
    for name in ("full", "noises"):
        assert main(["explain", name, "--weights", "fitted", "--json", f"{name}.json"]) == 0
    one, two = (json.loads(Path(f"{name}.json").read_text())["explanations"][0] for name in ("full", "noises"))
    assert two["timesteps"] == one["timesteps"] == TIMES
    assert two["weights"][0]["by_timestep"] == pytest.approx(one["weights"][0]["by_timestep"], rel=1e-2, abs=1e-3)


def test_what_has_no_weights_is_refused(capsys):
    errors, label = planted()
    pruned = errors.copy()
    pruned[0, 1, 3] = np.nan
    run("pruned", pruned, label)
    run("weighted", errors, label, protocol__weights="snr")
    for name, weights in (("short", [1, 2]), ("negative", [1, 2, -0.5, 0, 1]), ("zero", [0] * 5)):
        Path(f"{name}.json").write_text(json.dumps(weights))
    assert "give no --baseline" in error_line(capsys, "explain", "full", "--weights", "fitted", "--baseline", "full")
    for name, weights, words in (
        ("pruned", "fitted", "run with keep: null, timesteps: grid"),
        ("weighted", "fitted", "and weights: uniform"),
        ("full", "short.json", "short.json holds 2 weights; expected 5, one per timestep"),
        ("full", "negative.json", "negative.json holds the weight -0.5; no weight may be below 0"),
        ("full", "zero.json", "all 5 weights of zero.json are 0; at least one must be above 0"),
        ("full", "absent.json", "no file absent.json; --weights must be"),
        ("full", "cosine", "--weights must be uniform, fitted or JSON files"),
    ):
        assert words in error_line(capsys, "explain", name, "--weights", weights)
