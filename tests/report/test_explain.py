"""`bigain explain`: what it says of runs whose margins are known, and what it refuses."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import change, classification, generation, lgtm, tome

from bigain.commands.main import main
from bigain.report.explain.explanation import Band

IMAGES, TRIALS = 400, 5
TIMES = np.tile([125, 325, 525, 725, 925], (IMAGES, 1)).astype(np.int16)
NOISE = np.random.default_rng(0).standard_normal((IMAGES, TRIALS))


def run(path, margin, compressors=(), times=TIMES, **changes):
    """A run of two classes whose margins are given; the first is true."""
    margin = np.asarray(margin, np.float32)
    errors = np.stack([np.full_like(margin, 0.5), 0.5 + margin], 1)
    prediction = (margin.mean(1) <= 0).astype(np.int64)
    label = np.zeros(len(margin), np.int64)
    columns = {"errors": errors, "timesteps": times[: len(margin)]}
    return classification(
        path, prediction == label, compressors, label=label, prediction=prediction, columns=columns, **changes
    )


def site(name, kept, destroyed):
    """A measured module: energy 2 in every band before, at the timesteps 0-499 only."""
    original = [[2.0] * 5, [0.0] * 5]
    parts = {"compressed": kept, "error": destroyed}
    energies = {kind: [[2.0 * one for one in shares], [0.0] * 5] for kind, shares in parts.items()}
    about = {
        "name": name,
        "index": 0,
        "module": "self_attn",
        "grid": [8, 8],
        "channels": 4,
        "modes": [1, 6, 15, 22, 20],
    }
    return {
        **about,
        "rows": [10, 0],
        "rows_left_out": 0,
        "original": original,
        **energies,
        "kept": kept,
        "destroyed": destroyed,
    }


def response(path, *sites, **changes):
    content = {"schema_version": 1, "bands": [0, 0.25, 0.5, 0.75, 1], "timesteps": [0, 500, 1000], "batches": 2}
    content |= {"images": 16, "sites": list(sites), "not_measured": [], **changes}
    Path(path, "frequency_response.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Without compression, a run with the same deviation and half the margin, and one with a larger margin."""
    monkeypatch.chdir(tmp_path)
    run("none", 0.4 + 0.4 * NOISE)
    run("tome", 0.2 + 0.4 * NOISE, tome())
    run("lgtm", 0.6 + 0.4 * NOISE, lgtm())


def explain(*args):
    return main(["explain", *map(str, args)])


def numbers(*args, status=0):
    assert explain(*args, "--json", "found.json") == status
    return json.loads(Path("found.json").read_text())


def refused(capsys, *args):
    capsys.readouterr()
    assert explain(*args) == 2
    told = capsys.readouterr().err
    assert told.startswith("bigain: error: ")
    assert len(told.strip().splitlines()) == 1
    return told


def test_numbers_of_known_margins():
    (one,) = numbers("tome", "--baseline", "none")["explanations"]
    margin = (0.4 + 0.4 * NOISE).astype(np.float32)
    all_trials = one["margins"]
    assert (all_trials["images"], all_trials["trials_per_image"]) == (IMAGES, TRIALS)
    base, mine = all_trials["base"], all_trials["run"]
    assert base["mu"] == pytest.approx(margin.mean(), abs=1e-6)
    assert base["sigma"] == pytest.approx(margin.std(), abs=1e-6)
    assert base["r"] == pytest.approx(margin.std() / margin.mean(), abs=1e-5)
    assert mine["mu"] == pytest.approx(base["mu"] - 0.2, abs=1e-6)
    assert mine["sigma"] == pytest.approx(base["sigma"], abs=1e-6)
    variance = mine["sigma"] ** 2 / TRIALS
    assert mine["theorem_bound"] == pytest.approx(variance / (mine["mu"] ** 2 + variance))
    assert mine["error"] == pytest.approx(((0.2 + 0.4 * NOISE).mean(1) <= 0).mean())
    assert all_trials["theorem"] == "hurts"
    assert max(all_trials["change_of_mu_over_sigma_interval"]) < 0
    bands = one["margins_by_timestep"]
    assert [band["timesteps"] for band in bands] == [[0, 200], [200, 400], [400, 600], [600, 800], [800, 1000]]
    for trial, band in enumerate(bands):
        assert band["trials_per_image"] == 1
        assert band["base"]["mu"] == pytest.approx(margin[:, trial].mean(), abs=1e-6)
        assert band["base"]["error"] == pytest.approx((margin[:, trial] <= 0).mean())
    assert one["difference"] == pytest.approx(100 * (base["error"] - mine["error"]))


def test_the_sentences(capsys):
    assert explain("tome", "lgtm", "--baseline", "none") == 0
    told = capsys.readouterr().out
    assert "on the trials in which both runs evaluated every class (n = 400 images, 2,000 trials, 5 per image)" in told
    assert "r went from 1.0" in told
    assert "by Theorem 1 compression should hurt." in told
    assert "by Theorem 1 compression should help." in told
    assert "no compression beats ToMe at ratio 0.5 by " in told
    assert told.count("No frequency response is stored; run it again with --trainer.callbacks+=") == 2


def test_a_change_that_so_few_images_cannot_tell(capsys):
    other = np.random.default_rng(1).standard_normal(NOISE.shape)
    run("same", 0.4 + 0.4 * other, lgtm(0.3))
    assert explain("same", "--baseline", "none") == 0
    assert "though the images are too few to tell the change from none" in capsys.readouterr().out


def test_a_lost_margin(capsys):
    run("lost", -0.2 + 0.1 * NOISE, lgtm(0.7))
    assert explain("lost", "--baseline", "none") == 0
    told = capsys.readouterr().out
    assert " to - and 1/r from " in told
    assert "should hurt" in told
    (one,) = numbers("lost", "--baseline", "none")["explanations"]
    assert one["margins"]["run"]["r"] is None
    assert one["margins"]["run"]["theorem_bound"] == one["margins"]["run"]["cantelli_bound"] == 1
    assert explain("tome", "--baseline", "lost", "--allow-differences") == 0
    run("lost too", -0.2 + 0.2 * NOISE, tome(0.7))
    (one,) = numbers("lost too", "--baseline", "lost")["explanations"]
    assert one["margins"]["theorem"] is None


def test_bands_are_named_by_the_timesteps_in_them():
    edges = [0, 1000 / 3, 2000 / 3, 1000]
    names = [Band(low, high, None, None, None).name for low, high in itertools.pairwise(edges)]
    assert names == ["0-333", "334-666", "667-999"]


def test_bands_without_a_shared_trial_are_left_out():
    times = TIMES.copy()
    times[:, :] = [10, 20, 30, 940, 950]
    for name in ("a", "b"):
        run(name, 0.4 + 0.4 * NOISE, lgtm() if name == "b" else (), times=times)
    (one,) = numbers("b", "--baseline", "a", "--bands", "10")["explanations"]
    assert [(band["timesteps"], band["trials_per_image"]) for band in one["margins_by_timestep"]] == [
        ([0, 100], 3),
        ([900, 1000], 2),
    ]


def test_frequencies_are_told_as_stored(capsys):
    response("tome", site("blocks.0", [1, 0.9, 0.8, 0.5, 0.31], [0, 0.1, 0.2, 0.5, 0.7]))
    assert explain("tome", "--baseline", "none") == 0
    told = capsys.readouterr().out
    assert (
        "ToMe at ratio 0.5 keeps 31 % of the energy in the highest quarter of frequencies, with an error of 70 %"
        in told
    )
    assert "(at blocks.0, self_attn, 70 %)" in told
    assert "in the lowest quarter of frequencies it keeps 90 %, with an error of 10 %" in told
    assert "That error by timestep: 70 % at timesteps 0-499." in told
    assert "90/10" in told
    (one,) = numbers("tome", "--baseline", "none")["explanations"]
    assert one["frequencies"]["kept"] == pytest.approx([0.9, 0.8, 0.5, 0.31])
    assert one["frequencies"]["highest_destroyed_by_timestep"] == pytest.approx([0.7, None])


def test_several_sites_are_averaged_and_the_worst_is_named(capsys):
    one, other = [1, 1, 1, 1, 0.8], [1, 1, 1, 1, 0.4]
    response("tome", site("a", one, [0, 0, 0, 0, 0.1]), site("b", other, [0, 0, 0, 0, 0.5]), not_measured=["c, mlp"])
    assert explain("tome", "--baseline", "none") == 0
    told = capsys.readouterr().out
    assert "keeps 60 % of the energy in the highest quarter of frequencies, with an error of 30 %" in told
    assert "on average over 2 modules; most at b, self_attn, 50 %" in told
    assert "Not measured, since the compressor cannot report it: c, mlp." in told


def test_the_figure_is_the_same_each_time(capsys):
    response("tome", site("a", [1, 1, 0.9, 0.8, 0.7], [0, 0, 0.1, 0.2, 0.3]))
    files = []
    for folder in ("one", "two"):
        assert explain("tome", "lgtm", "--baseline", "none", "--output", f"figures/{folder}") == 0
        files.append([Path("figures", folder, f"explain.{kind}").read_bytes() for kind in ("png", "svg")])
    assert files[0] == files[1]
    assert files[0][0].startswith(b"\x89PNG")
    assert str(Path("figures/two/explain.svg")) in capsys.readouterr().out
    for name in (b"no compression", b"ToMe at ratio 0.5", b"LGTM at ratio 0.5"):
        assert name in files[0][1]


def test_a_folder_of_runs_and_a_baseline_inside(capsys):
    Path("runs").mkdir()
    for name in ("none", "tome", "lgtm"):
        Path(name).rename(Path("runs", name))
    assert explain("runs", "--baseline", "runs/none") == 0
    Path("runs/none").rename("runs/tome/baseline")
    assert explain("runs/tome") == 0
    assert "baseline: no compression, runs/tome/baseline" in capsys.readouterr().out


def test_every_run_has_its_own_baseline(capsys):
    for name, seed in (("a", 0), ("b", 7)):
        run(name, 0.2 + 0.4 * NOISE, tome(), protocol__seed=seed)
        run(f"{name}/baseline", 0.4 + 0.4 * NOISE, protocol__seed=seed)
    assert [one["base"] for one in numbers("a", "b")["explanations"]] == ["a/baseline", "b/baseline"]
    capsys.readouterr()
    assert explain("a", "b", "lgtm") == 1
    told = capsys.readouterr().out
    assert told.count("baseline: no compression, ") == 2
    assert "left out: lgtm has no baseline in it" in told
    Path("folder").mkdir()
    for name in ("a", "b"):
        Path(name).rename(Path("folder", name))
    assert len(numbers("folder")["explanations"]) == 2


def test_rows_that_were_left_out_are_told(capsys):
    lost = {**site("blocks.0", [1, 1, 1, 0.5, 0.5], [0, 0, 0, 0.5, 0.5]), "rows_left_out": 3}
    response("tome", lost)
    assert explain("tome", "--baseline", "none") == 0
    assert "Left out: up to 3 of 13 rows of a site, whose values were not finite." in capsys.readouterr().out


def test_missing_foreign_and_unfinished_directories_are_named(capsys):
    Path("foreign").mkdir()
    run("part", 0.4 + 0.4 * NOISE, lgtm(0.3), dataset__asked=500)
    assert explain("tome", "nowhere", "foreign", "part", "--baseline", "none") == 1
    told = capsys.readouterr().out
    assert "left out: nowhere does not exist" in told
    assert "left out: foreign is not a run directory of bigain" in told
    assert "left out: part is not finished: 400 of 500 images are done" in told
    assert explain("part", "--baseline", "none", "--partial") == 0
    assert "nowhere does not exist" in refused(capsys, "tome", "--baseline", "nowhere")
    assert "name the run without compression with --baseline" in refused(capsys, "tome")


def test_runs_that_differ_are_refused_unless_told_otherwise(capsys):
    run("few", 0.4 + 0.4 * NOISE[:300], lgtm(0.3))
    change("lgtm", protocol__seed=3, environment__packages={"bigain": "0.0.9", "torch": "2.6.0"})
    assert "images: 300 and 400, of which 300 are the same" in refused(capsys, "few", "--baseline", "none")
    told = refused(capsys, "lgtm", "--baseline", "none")
    assert "protocol seed 3 and 0" in told
    assert "version of bigain 0.0.9 and 0.1.0" in told
    assert explain("few", "--baseline", "none", "--allow-differences") == 0
    told = capsys.readouterr().out
    assert "n = 300 images" in told
    assert "Caution: they also differ in images: 300 and 400" in told


def test_what_has_no_margins_is_refused(capsys):
    generation("images", 10.0)
    assert "margins between classes are of classification only" in refused(capsys, "tome", "--baseline", "images")
    label = np.zeros((4, 3), bool)
    label[:, 0] = True
    for name in ("coco", "coco0"):
        classification(name, [True] * 4, label=label, prediction=np.zeros(4, int))
    assert "has several labels per image" in refused(capsys, "coco", "--baseline", "coco0")
    classification("bare", np.arange(400) < 300, lgtm(0.3), label=np.zeros(400, int), prediction=np.arange(400) // 300)
    assert "bare/predictions/predictions.npz is damaged" in refused(capsys, "bare", "--baseline", "none")


def test_a_damaged_response_is_named(capsys):
    response("tome", schema_version=2)
    assert "schema_version 2; this bigain reads 1; delete it" in refused(capsys, "tome", "--baseline", "none")
    Path("tome/frequency_response.json").write_text("{")
    told = refused(capsys, "tome", "--baseline", "none")
    assert "tome/frequency_response.json is damaged" in told
    assert "run the command that made tome again" in told


def test_bad_arguments(capsys):
    assert "--bands must be in 1..1000, not 0" in refused(capsys, "tome", "--baseline", "none", "--bands", 0)
    Path("file").write_text("x")
    assert "give --json another file" in refused(capsys, "tome", "--baseline", "none", "--json", "file/x.json")
    assert "choose another --output" in refused(capsys, "tome", "--baseline", "none", "--output", "file/x")
    assert "tome is the base itself" in refused(capsys, "tome", "--baseline", "tome")
