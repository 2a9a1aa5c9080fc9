"""`bigain compare` of generations: paired errors against simulation, sentences, refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from synthetic_runs import change, classification, error_line, generation, lgtm, tome

from bigain.commands.main import main
from bigain.metrics.base import jackknife_error, proportion
from bigain.metrics.cmmd import Cmmd
from bigain.metrics.frechet import frechet_leave_one_out
from bigain.metrics.kernel import kernel_leave_one_out
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.metrics.shape_features import ShapeFeatures
from bigain.runs.logs import read_records
from bigain.runs.records import SampleRecord

N, D = 60, 64
PROTOCOL = "shapes-features"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """ToMe's features are LGTM's and a little more; images of `none` are those of both and noise."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    real = draw.standard_normal((300, D)).astype(np.float32)
    ReferenceStatistics(Moments.of([real]), PROTOCOL, features=real[:200]).save("reference.npz")
    base = draw.standard_normal((N, D))
    made("none", base, (), noise=0)
    made("lgtm", base + 0.05 * draw.standard_normal((N, D)), lgtm(), noise=4)
    made("tome", base + 0.3 + 0.05 * draw.standard_normal((N, D)), tome(), noise=12)


def made(path, features, compressors, noise, ids=None):
    """A generation with a log, images, and a fidelity to `none`."""
    features = features.astype(np.float32)
    n, ids = len(features), [f"test/{i:03d}" for i in range(len(features))] if ids is None else ids
    value, _ = frechet_leave_one_out(features, ReferenceStatistics.load("reference.npz", PROTOCOL).moments)
    to = {"fidelity_to": {"run": "none", "fingerprint": "a", "compressors": []}} if noise else {}
    generation(path, value, compressors, n=n, name=f"frechet[{PROTOCOL}]", **to)
    change(path, protocol__extractor=PROTOCOL, protocol__reference_file="reference.npz")
    estimate = {**proportion(1, n), "unit": "%", "better": "higher"}
    change(path, **{f"metrics__agreement[{PROTOCOL}]": estimate, "metrics__psnr": {**estimate, "unit": "dB"}})
    labels = features.argmax(1) % 16
    records = [SampleRecord(i, [int(label)], "", 0.1, row) for i, label, row in zip(ids, labels, features, strict=True)]
    for folder in ("predictions", "samples/test"):
        Path(path, folder).mkdir(parents=True)
    Path(path, "predictions/rank-0.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))
    Path(path, "images.txt").write_text("".join(f"{i}\n" for i in ids))
    draw = np.random.default_rng(1)
    for i in ids:
        pixels = 128 + noise * draw.standard_normal((8, 8, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path(path, "samples", f"{i}.png"))


def numbers(*args):
    assert main(["compare", *args, "--json", "numbers.json"]) == 0
    return {row["metric"]: row for row in json.loads(Path("numbers.json").read_text())["comparisons"]}


def test_the_sentences_and_the_numbers(capsys):
    rows = numbers("tome", "lgtm")
    text = capsys.readouterr().out
    assert set(rows) == {f"{name}[{PROTOCOL}]" for name in ("frechet", "kid", "agreement")} | {"psnr"}
    for metric, title in ((f"frechet[{PROTOCOL}]", "FD (shapes-features)"), ("psnr", "PSNR")):
        assert f"{title}: LGTM at ratio 0.5 beats ToMe at ratio 0.5 by " in text
        row = rows[metric]
        width = norm.ppf(0.975) * row["standard_error"]
        ends = row["difference"] - width, row["difference"] + width
        assert (row["low"], row["high"]) == pytest.approx(ends)
        assert row["p"] == pytest.approx(2 * norm.sf(abs(row["difference"]) / row["standard_error"]))
        assert row["significant"]
        assert row["low"] * row["high"] > 0
    assert rows[f"frechet[{PROTOCOL}]"]["difference"] < 0 < rows["psnr"]["difference"]
    assert f"n = {N}; McNemar p = " in text
    # An image is what it was made for, or not, as its class.
    extractor = ShapeFeatures()
    extractor.load()
    records = [read_records(Path(name, "predictions"), SampleRecord).values() for name in ("lgtm", "tome")]
    lgtms, tomes = (
        extractor.classes_of(torch.from_numpy(np.stack([record.features for record in of]))).numpy()
        == [record.labels[0] for record in of]
        for of in records
    )
    agreement = rows[f"agreement[{PROTOCOL}]"]
    assert agreement["only_run_right"] == (lgtms & ~tomes).sum()
    assert agreement["only_base_right"] == (tomes & ~lgtms).sum()


def test_clip_features_are_compared_by_cmmd_too():
    draw = np.random.default_rng(2)
    real = draw.standard_normal((80, D)).astype(np.float32)
    reference = ReferenceStatistics(Moments.of([real]), "clip", features=real)
    reference.save("clip.npz")
    features = {}
    for name in ("tome", "lgtm"):
        log = read_records(Path(name, "predictions"), SampleRecord)
        features[name] = np.stack([record.features for record in log.values()])
        value, _ = frechet_leave_one_out(features[name], reference.moments)
        change(name, protocol__extractor="clip", protocol__reference_file="clip.npz")
        estimate = {"value": value, "low": None, "high": None, "n": N, "unit": "", "better": "lower"}
        change(name, **{"metrics__frechet[clip]": estimate})
    rows = numbers("tome", "lgtm")
    (mine, without), (theirs, without_base) = (
        Cmmd(reference).leave_one_out(features[name], real) for name in ("lgtm", "tome")
    )
    assert rows["cmmd[clip]"]["difference"] == pytest.approx(mine - theirs)
    assert rows["cmmd[clip]"]["standard_error"] == pytest.approx(jackknife_error(without - without_base))


def test_the_reverse_names_the_same_winner_and_several_are_corrected(capsys):
    numbers("lgtm", "tome")
    assert "FD (shapes-features): LGTM at ratio 0.5 beats ToMe at ratio 0.5 by " in capsys.readouterr().out
    assert main(["compare", "none", "lgtm", "tome", "--json", "numbers.json"]) == 0
    assert "with correction for 2 tests" in capsys.readouterr().out
    rows = json.loads(Path("numbers.json").read_text())["comparisons"]
    # The base run is what PSNR was measured against.
    assert {row["metric"] for row in rows} == {f"{name}[{PROTOCOL}]" for name in ("frechet", "kid", "agreement")}
    for row in rows:
        assert (row["low"] <= 0 <= row["high"]) == (not row["significant"])


def test_a_report_compares_generations(monkeypatch):
    monkeypatch.setattr("bigain.report.document.draw", lambda groups, folder, samples: [[] for _ in groups])
    assert main(["report", "none", "lgtm", "tome"]) == 0
    with Path("report/comparisons.csv").open(newline="") as file:
        rows = {(row["run"], row["metric"]): row for row in csv.DictReader(file)}
    assert main(["compare", "none", "lgtm", "tome", "--json", "numbers.json"]) == 0
    compared = json.loads(Path("numbers.json").read_text())["comparisons"]
    assert {(row["run"], row["metric"]): row["difference"] for row in compared} == {
        key: float(row["difference"]) for key, row in rows.items()
    }
    text = " ".join(Path("report/report.md").read_text().split())
    assert "**Image by image against no compression, none: " in text
    assert f"| ToMe | ratio 0.5 | FD ({PROTOCOL}) | " in text
    # PSNR of the base run to itself is nothing to compare.
    assert main(["report", "lgtm", "tome", "--base", "tome"]) == 0
    assert "PSNR: LGTM at ratio 0.5 beats ToMe at ratio 0.5" in Path("report/report.md").read_text()


def test_unlike_damaged_and_small_runs_are_refused(capsys):
    classification("classified", [True] * N)
    message = error_line(capsys, "compare", "tome", "classified")
    assert "classified is a run of classification, tome of generation; compare one task" in message
    change("lgtm", protocol__seed=3)
    assert "protocol seed 3 and 0" in error_line(capsys, "compare", "tome", "lgtm")
    assert main(["compare", "tome", "lgtm", "--allow-differences"]) == 0
    assert "Caution: they also differ in protocol seed 3 and 0." in capsys.readouterr().out
    made("few", np.random.default_rng(2).standard_normal((5, D)), lgtm(0.3), noise=4)
    assert "images: 5 and 60" in error_line(capsys, "compare", "tome", "few")
    assert "a comparison takes 10" in error_line(capsys, "compare", "tome", "few", "--allow-differences")


def test_values_of_images_in_both_logs_are_compared(capsys):
    values = {}
    for name, factor in (("lgtm", 1.0), ("tome", 0.9)):
        log = read_records(Path(name, "predictions"), SampleRecord).values()
        values[name] = factor * np.random.default_rng(4).uniform(0.2, 0.3, N)
        for record, value in zip(log, values[name], strict=True):
            record.measured = {"clip_score": 100 * value, "sharp": value}
        Path(name, "predictions/rank-0.jsonl").write_text("".join(f"{record.to_json()}\n" for record in log))
        estimate = {"value": 0.5, "low": None, "high": None, "n": N, "better": "higher"}
        change(
            name, **{"metrics__clip_score[a]": {**estimate, "unit": ""}, "metrics__sharp": {**estimate, "unit": "%"}}
        )
    rows = numbers("tome", "lgtm")
    assert "CLIP score (a): LGTM at ratio 0.5 beats ToMe at ratio 0.5 by 2.5" in capsys.readouterr().out
    differences = 100 * (values["lgtm"] - values["tome"])
    for metric in ("clip_score[a]", "sharp"):
        assert rows[metric]["difference"] == pytest.approx(differences.mean())
        assert rows[metric]["standard_error"] == pytest.approx(differences.std(ddof=1) / N**0.5)
    # Whose values are in the log can no longer be told.
    change("lgtm", **{"metrics__clip_score[b]": {**estimate, "unit": ""}})
    assert "clip_score[a]" not in numbers("tome", "lgtm")


def test_distances_to_different_references_are_refused(capsys):
    # As files of pytorch-fid, these have neither a source nor a number of images.
    for name in ("reference", "other"):
        moments = Moments.of([np.random.default_rng(len(name)).standard_normal((300, D))])
        np.savez(name, mu=moments.mean, sigma=moments.covariance, protocol=PROTOCOL)
    change("lgtm", protocol__reference_file="other.npz")
    assert main(["compare", "tome", "lgtm"]) == 1
    text = capsys.readouterr().out
    assert "left out: lgtm and tome have different references; `bigain score` them with one" in text
    assert "FD (" not in text
    described = [ReferenceStatistics.load(f"{name}.npz", PROTOCOL).described() for name in ("reference", "other")]
    assert described[0] != described[1]


def test_paired_errors_are_those_of_simulated_runs():
    draw, dimension, n = np.random.default_rng(3), 4, 80
    real = draw.standard_normal((400, dimension))
    reference, found = Moments.of([real]), {"frechet": [], "kid": []}
    for _ in range(60):
        x = 1.3 * draw.standard_normal((n, dimension)) + 0.5
        y = 1.1 * x + 0.1 * draw.standard_normal((n, dimension))
        for name, one in {
            "frechet": lambda z: frechet_leave_one_out(z, reference),
            "kid": lambda z: kernel_leave_one_out(z, real[:100]),
        }.items():
            (a, without_a), (b, without_b) = one(x), one(y)
            unpaired = np.hypot(jackknife_error(without_a), jackknife_error(without_b))
            found[name].append((a - b, jackknife_error(without_a - without_b), unpaired))
    for values in found.values():
        differences, paired, unpaired = np.transpose(values)
        assert paired.mean() == pytest.approx(differences.std(ddof=1), rel=0.3)
        assert unpaired.mean() > 1.5 * paired.mean()
