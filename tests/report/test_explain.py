"""`bigain explain`: its statements on runs whose margins are known, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import classification, error_line, generation, lgtm, tome

from bigain.commands.main import main
from bigain.report.explain import explanation
from bigain.report.explain.figure import draw
from bigain.report.figures import panels, plain_style, plain_ticks
from bigain.runs.results import load_run

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
    """A measured module: energy 2 in every band before."""
    shares = {"original": [1] * 5, "compressed": kept, "error": destroyed}
    energies = {kind: [2.0 * share for share in values] for kind, values in shares.items()}
    about = {"name": name, "index": 0, "module": "self_attn", "grid": [8, 8], "channels": 4}
    about |= {"modes": [1, 6, 15, 22, 20]}
    return {**about, "rows": 10, **energies, "kept": kept, "destroyed": destroyed}


def response(path, *sites, **changes):
    content = {"schema_version": 1, "bands": [0, 0.25, 0.5, 0.75, 1], "batches": 2}
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


def numbers(*args):
    assert explain(*args, "--json", "numbers.json") == 0
    return json.loads(Path("numbers.json").read_text())["explanations"]


def output(capsys, *args, status=0):
    capsys.readouterr()
    assert explain(*args) == status
    return capsys.readouterr().out


def refused(capsys, *args):
    return error_line(capsys, "explain", *args)


def test_numbers_of_known_margins():
    (of_run,) = numbers("tome", "--baseline", "none")
    margin = (0.4 + 0.4 * NOISE).astype(np.float32)
    whole = of_run["margins"]
    assert (whole["images"], whole["trials_per_image"], whole["theorem"]) == (IMAGES, TRIALS, "hurts")
    base, mine = whole["base"], whole["run"]
    expected = [margin.mean(), margin.std(), margin.std() / margin.mean()]
    assert [base[name] for name in ("mu", "sigma", "r")] == pytest.approx(expected, abs=1e-5)
    assert [mine["mu"], mine["sigma"]] == pytest.approx([base["mu"] - 0.2, base["sigma"]], abs=1e-6)
    variance = mine["sigma"] ** 2 / TRIALS
    assert mine["theorem_bound"] == pytest.approx(variance / (mine["mu"] ** 2 + variance))
    assert mine["error"] == pytest.approx(((0.2 + 0.4 * NOISE).mean(1) <= 0).mean())
    assert max(whole["change_of_mu_over_sigma_interval"]) < 0
    bands = of_run["margins_by_timestep"]
    assert [band["timesteps"] for band in bands] == [[0, 200], [200, 400], [400, 600], [600, 800], [800, 1000]]
    for trial, band in enumerate(bands):
        assert band["trials_per_image"] == 1
        assert band["base"]["mu"] == pytest.approx(margin[:, trial].mean(), abs=1e-6)
        assert band["base"]["error"] == pytest.approx((margin[:, trial] <= 0).mean())
    assert of_run["difference"] == pytest.approx(100 * (base["error"] - mine["error"]))


def test_the_sentences(capsys):
    run("same", 0.4 + 0.4 * np.random.default_rng(1).standard_normal(NOISE.shape), lgtm(0.3))
    text = output(capsys, "tome", "lgtm", "same", "--baseline", "none")
    assert "on the trials in which both runs evaluated every class (n = 400 images, 2,000 trials, 5 per image)" in text
    assert "r went from 1.0" in text
    assert "With the deviation between images and trials, r went from 1.0" in text
    assert "by Theorem 1 compression should hurt." in text
    assert "by Theorem 1 compression should help." in text
    assert "no compression beats ToMe at ratio 0.5 by " in text
    assert text.count("No frequency response is stored; run it again with --trainer.callbacks+=") == 3
    assert "though the images are too few to distinguish the change from zero" in text


def test_one_image_has_no_interval_and_no_verdict(capsys):
    run("one", 0.2 + 0.4 * NOISE[:1], tome(0.4))
    run("one0", 0.4 + 0.4 * NOISE[:1])
    text = output(capsys, "one", "--baseline", "one0", "--json", "numbers.json")
    assert "(too few images for an interval): a verdict takes 10 images. Its bound" in text
    assert "Theorem 1 compression" not in text
    whole = json.loads(Path("numbers.json").read_text())["explanations"][0]["margins"]
    assert (whole["theorem"], whole["change_of_mu_over_sigma_interval"]) == (None, None)


def test_a_lost_margin(capsys):
    run("lost", -0.2 + 0.1 * NOISE, lgtm(0.7))
    text = output(capsys, "lost", "--baseline", "none")
    assert " to - and 1/r from " in text
    assert "should hurt" in text
    (of_run,) = numbers("lost", "--baseline", "none")
    mine = of_run["margins"]["run"]
    assert (mine["r"], mine["theorem_bound"], mine["cantelli_bound"]) == (None, 1, 1)
    run("lost too", -0.2 + 0.2 * NOISE, tome(0.7))
    (of_run,) = numbers("lost too", "--baseline", "lost")
    assert of_run["margins"]["theorem"] is None


def test_bands_of_timesteps(capsys):
    text = output(capsys, "tome", "--baseline", "none", "--bands", 3)
    assert all(f"\n  {band} " in text for band in ("0-333", "334-666", "667-999"))
    times = np.tile(np.array([10, 20, 30, 940, 950], np.int16), (IMAGES, 1))
    for name in ("a", "b"):
        run(name, 0.4 + 0.4 * NOISE, lgtm() if name == "b" else (), times=times)
    (of_run,) = numbers("b", "--baseline", "a", "--bands", "10")
    # Bands without a shared trial are left out.
    bands = [(band["timesteps"], band["trials_per_image"]) for band in of_run["margins_by_timestep"]]
    assert bands == [([0, 100], 3), ([900, 1000], 2)]


def test_frequencies_of_one_site(capsys):
    response("tome", site("blocks.0", [1, 0.9, 0.8, 0.5, 0.31], [0, 0.1, 0.2, 0.5, 0.7]))
    text = output(capsys, "tome", "--baseline", "none")
    assert (
        "Energy kept / destroyed, in percent of the energy of each band of frequencies (16 images, 2 batches):" in text
    )
    assert "blocks.0, self_attn 90/10 80/20 50/50 31/70" in " ".join(text.split())
    (of_run,) = numbers("tome", "--baseline", "none")
    assert of_run["frequencies"]["kept"] == pytest.approx([0.9, 0.8, 0.5, 0.31])


def test_frequencies_of_several_sites_are_averaged(capsys):
    sites = site("a", [1, 1, 1, 1, 0.8], [0, 0, 0, 0, 0.1]), site("b", [1, 1, 1, 1, 0.4], [0, 0, 0, 0, 0.5])
    response("tome", *sites, not_measured=["c, mlp"])
    text = output(capsys, "tome", "--baseline", "none")
    assert "mean of these 100/0 100/0 100/0 60/30" in " ".join(text.split())
    assert "Not measured, since the compressor cannot report it: c, mlp." in text


def test_a_damaged_response_is_named(capsys):
    response("tome", schema_version=2)
    assert "schema_version 2; this bigain reads 1; delete it" in refused(capsys, "tome", "--baseline", "none")
    for changes in ({"sites": [{"name": "a"}]}, {"bands": 3}):
        response("tome", **changes)
        message = refused(capsys, "tome", "--baseline", "none")
        assert "tome/frequency_response.json is damaged" in message
        assert "run the command that made tome again" in message


def test_the_figure_is_written_in_all_formats(capsys):
    response("tome", site("a", [1, 1, 0.9, 0.8, 0.7], [0, 0, 0.1, 0.2, 0.3]))
    assert explain("tome", "lgtm", "--baseline", "none", "--output", "figures") == 0
    assert "figures/explain.svg" in capsys.readouterr().out
    png, svg, pdf = (Path("figures", f"explain.{kind}").read_bytes() for kind in ("png", "svg", "pdf"))
    assert (png[:4], pdf[:4]) == (b"\x89PNG", b"%PDF")
    for name in (b"no compression", b"ToMe at ratio 0.5", b"LGTM at ratio 0.5"):
        assert name in svg


@pytest.mark.parametrize("images", [IMAGES, 5])
def test_a_single_band_distinguishes_the_bound_from_what_was_observed(images):
    for name, margin, compressors in (("base", 0.4, ()), ("mine", 0.2, tome())):
        run(name, margin + 0.4 * NOISE[:images], compressors)
    explanations, _ = explanation.explain(load_run(Path("base")), [load_run(Path("mine"))], bands=1)
    with plain_style():
        _, ratio, errors = draw(explanations).axes
    markers = [line.get_marker() for line in errors.lines]
    assert markers[::2] == ["_", "_"]
    assert "_" not in markers[1::2]
    assert ("interval" in ratio.get_title(loc="left")) == (images > 5) == bool(ratio.containers)


def test_short_axes_show_numbers():
    with plain_style():
        for scale in ({"value": "log"}, {"value": "symlog", "linthresh": 0.01}):
            axes = panels(1, 1)[1][0][0]
            axes.plot([0, 1], [0.05, -0.09 if "linthresh" in scale else 0.09])
            axes.set_yscale(**scale)
            plain_ticks(axes.yaxis)
            axes.figure.draw_without_rendering()
            labels = [label.get_text() for label in axes.get_yticklabels(which="both") if label.get_text()]
            assert labels
            assert "$" not in "".join(labels)
            assert any(label.startswith("\N{MINUS SIGN}0.0") for label in labels) == ("linthresh" in scale)


def test_a_folder_may_hold_the_baseline():
    Path("runs").mkdir()
    for name in ("none", "tome", "lgtm"):
        Path(name).rename(Path("runs", name))
    assert len(numbers("runs", "--baseline", "runs/none")) == 2
    assert len(numbers("runs/none", "runs/tome", "--baseline", "runs/none")) == 1


def test_left_out_directories_and_wrong_arguments_are_named(capsys):
    text = output(capsys, "tome", "nowhere", "--baseline", "none", status=1)
    assert "left out: nowhere does not exist" in text
    assert "nowhere does not exist" in refused(capsys, "tome", "--baseline", "nowhere")
    assert "name the run without compression with --baseline" in refused(capsys, "tome")
    assert "tome is the base itself" in refused(capsys, "tome", "--baseline", "tome")
    for options, words in (
        (["--bands", 0], "--bands"),
        (["--json", "tome/results.json/x"], "give --json another file"),
        (["--output", "tome/results.json"], "choose another --output"),
    ):
        assert words in refused(capsys, "tome", "--baseline", "none", *options)


def test_runs_without_margins_are_refused(capsys):
    generation("images", 10.0)
    assert "margins between classes are of classification only" in refused(capsys, "tome", "--baseline", "images")
    label = np.eye(3, dtype=bool)[[0, 0, 0, 0]]
    for name in ("coco", "coco0"):
        classification(name, [True] * 4, label=label, prediction=np.zeros(4, int))
    assert "has several labels per image" in refused(capsys, "coco", "--baseline", "coco0")
    classification("bare", np.arange(400) < 300, lgtm(0.3), label=np.zeros(400, int), prediction=np.arange(400) // 300)
    assert "bare/predictions/predictions.npz is damaged" in refused(capsys, "bare", "--baseline", "none")


# Bands of margins: most of the mean below, most of the variance above; and energies that are kept of them.
MU, SIGMA, GAIN = (
    np.array(values) for values in ([0.1, 0.4, 0.2, 0.05, 0.05], [0.02, 0.1, 0.1, 0.2, 0.3], [1, 1, 0.9, 0.5, 0.25])
)


def planted(mu, sigma, seed=0):
    """Parts of errors of two classes at 4 timesteps with 3 noises each; the first class is true."""
    margin = mu + sigma * np.random.default_rng(seed).standard_normal((60, 12, 5))
    return np.stack([np.full_like(margin, 0.5), 0.5 + margin], 1)


def run_by_frequency(path, bands, compressors=(), **changes):
    errors, label = bands.sum(3), np.zeros(len(bands), np.int64)
    prediction = errors.mean(2).argmin(1)
    columns = {
        "errors": errors,
        "bands": bands,
        "timesteps": np.tile(np.repeat([125, 375, 625, 875], 3), (len(bands), 1)).astype(np.int16),
    }
    columns = {name: column.astype(np.float32) if column.dtype == float else column for name, column in columns.items()}
    protocol = {"protocol__noises": 3, "protocol__bands": {"count": bands.shape[3] - 1, "grid": [8, 8]}}
    return classification(
        path,
        prediction == label,
        compressors,
        label=label,
        prediction=prediction,
        columns=columns,
        **protocol,
        **changes,
    )


def test_the_prediction_and_the_verdicts(capsys):
    bands = planted(MU, SIGMA)
    run_by_frequency("plain", bands)
    run_by_frequency("merged", 0.5 + (bands - 0.5) * GAIN, tome())
    response("merged", site("blocks.0", GAIN.tolist(), [0] * 5))
    (of_run,) = numbers("merged", "--baseline", "plain")
    found = of_run["margins_by_frequency"]
    assert found["gain"] == pytest.approx(GAIN)
    holds = [True, True, True]
    assert found["base"]["statements"] == holds
    text = output(capsys, "merged", "--baseline", "plain")
    words = " ".join(text.split())
    assert "Changes that Theorem 1 predicts by |H_P|^2 (1, 1, 0.9, 0.5, 0.25), and measured with the deviation" in words
    assert "over noises: predicted measured 95 % interval of the change direction" in words
    assert "margin 0.79 to 0.71, falls 0.79 to 0.71 " in words
    assert "1/r 1.99 to 3.8, rises 2 to 3.76 +1.6 to +1.93 right" in words
    assert "sigma^2 and 1/r of the baseline differ: predictions assume independent bands" in words
    assert "With the deviation over noises, r went from 0.5 to 0.266 and 1/r from 2 to 3.76 (95 % " in text
    assert "by Theorem 1 compression should help." in text
    predicted = found["prediction"]
    verdicts = ["margin_verdict", "variance_verdict", "verdict"]
    assert (predicted["rises"], [predicted[name] for name in verdicts]) == (True, ["right"] * 3)
    assert predicted["measured_margin"] == pytest.approx(np.array(predicted["margin"]), rel=1e-5)
    assert predicted["mu_over_sigma"] == pytest.approx([1.99, 3.8], abs=0.01)
    assert predicted["change_of_mu_over_sigma_interval"] == pytest.approx(
        of_run["margins"]["change_of_mu_over_sigma_interval"], abs=1e-3
    )
    low, *_ = found["base"]["measured"]
    assert (low["statement"], low["threshold"], low["holds"]) == ("low bands dominate the margin", 0.5, True)
    assert low["interval"][0] < low["value"] < low["interval"][1]
    assert (
        'no compression: "low bands dominate the margin" (above 50 %) holds: the lower half has 88.5 % (95 % ' in text
    )
    assert '"cross-band correlation is weak" (below 0.3) holds: it is on average ' in text
    assert "summed over all pairs of bands, weak or not, covariances are " in text
    assert "over noises at one timestep of one image (n = 60 images)" in text
    assert "0.75-1 0.0542 0.0136 0.0136 0.31 0.0776 0.0776" in " ".join(text.split())
    assert "over noise: the theorem's deviation" in text
    # The other way round, and bands that move together.
    other = planted(MU[::-1], SIGMA[::-1] / 20)
    shared = 0.3 * np.random.default_rng(1).standard_normal((60, 12, 1))
    other[:, 1] += shared * np.linspace(1, 0.2, 5)
    run_by_frequency("odd", other, tome(0.3))
    (of_run,) = numbers("odd", "--baseline", "plain")
    assert of_run["margins_by_frequency"]["run"]["statements"] == [False] * 3
    assert of_run["margins_by_frequency"]["gain"] is None
    run_by_frequency("few", bands[:5], tome(0.7))
    (of_run,) = numbers("few", "--baseline", "plain", "--allow-differences")
    assert of_run["margins_by_frequency"]["run"]["statements"] == [None] * 3
    text = output(capsys, "few", "--baseline", "plain", "--allow-differences")
    assert '"low bands dominate the margin" (above 50 %) is undecided: the lower half has ' in text
    assert "% (too few images: no interval)" in text
    run_by_frequency("coarse", bands[..., :3], tome(0.1))
    assert "store 4 and 2 bands" in error_line(capsys, "explain", "coarse", "--baseline", "plain")


def test_each_number_of_the_prediction_has_its_own_verdict(capsys):
    """The margin falls as predicted, and so does 1 / r; the variance, predicted to fall, grows."""
    bands = planted(MU, SIGMA)
    run_by_frequency("plain", bands)
    gain = np.array([0.5, 0.5, 0.9, 1, 1])
    for name, ratio in (("noisy", 0.5), ("noisier", 0.3)):
        run_by_frequency(name, planted(MU * gain, 2 * SIGMA), tome(ratio))
        response(name, site("blocks.0", gain.tolist(), [0] * 5))
    for of_run in numbers("noisy", "noisier", "--baseline", "plain"):
        row = of_run["margins_by_frequency"]["prediction"]
        assert [row[f"{name}verdict"] for name in ("margin_", "variance_", "")] == ["right", "wrong", "right"]
        for name in ("margin", "variance", "mu_over_sigma"):
            (low, high), (before, after) = row[f"change_of_{name}_interval"], row[f"measured_{name}"]
            assert low < after - before < high
    text = output(capsys, "noisy", "noisier", "--baseline", "plain")
    lines = [line.split() for line in text.splitlines()]
    for name, direction, verdict in (
        ("margin", "falls", "right"),
        ("sigma^2", "falls", "wrong"),
        ("1/r", "falls", "right"),
    ):
        assert sum(line[:1] == [name] and direction in line and line[-1] == verdict for line in lines) == 2
    # What holds of the baseline is said once.
    starts = ['no compression: "low', 'ToMe at ratio 0.5: "low', 'ToMe at ratio 0.3: "low']
    assert [sum(line.startswith(start) for line in text.splitlines()) for start in starts] == [1, 1, 1]


def test_an_equal_gain_of_all_bands_predicts_no_change_of_r(capsys):
    bands = planted(MU, SIGMA)
    run_by_frequency("plain", bands)
    run_by_frequency("even", 0.5 + (bands - 0.5) * 0.7, tome())
    response("even", site("blocks.0", [0.7] * 5, [0] * 5))
    (of_run,) = numbers("even", "--baseline", "plain")
    row = of_run["margins_by_frequency"]["prediction"]
    assert (row["rises"], row["verdict"], row["margin_verdict"]) == (False, None, "right")
    lines = [" ".join(line.split()) for line in output(capsys, "even", "--baseline", "plain").splitlines()]
    (line,) = (line for line in lines if line.startswith("1/r"))
    assert ", no change " in line
    assert line.endswith(" undecided")


def test_a_margin_that_may_be_lost_leaves_low_bands_undecided_and_says_why(capsys):
    for name, compressors in (("plain", ()), ("merged", tome())):
        run_by_frequency(name, planted(0.001 * MU, SIGMA), compressors)
    text = output(capsys, "merged", "--baseline", "plain")
    assert '"low bands dominate the margin" (above 50 %) is undecided' in text
    assert "(the margin is not positive in some resamples: no interval)" in text
