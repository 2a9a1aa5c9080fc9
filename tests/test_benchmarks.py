"""The scripts in `benchmarks/`: all in one command, and how cost grows."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from bigain.commands.main import main

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def folder_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """The command over three scripts: one that works, one that fails, one that is not quick."""
    module = script("run_all")
    (tmp_path / "works.py").write_text("import sys\nprint(sys.argv[1:])\n")
    (tmp_path / "fails.py").write_text("print('half'); raise SystemExit(3)\n")
    benchmarks = (
        module.Benchmark("works", "what works", ["works.py", "{scratch}/x"], ["--full"]),
        module.Benchmark("fails", "what fails", ["fails.py"]),
        module.Benchmark("slow", "what takes long", ["-m", "platform"], quick=None),
    )
    monkeypatch.setattr(module, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(module, "HERE", tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["run_all.py", "--output", str(tmp_path / "results"), *args])
        return module.main(), tmp_path / "results"

    return run


def test_all_benchmarks_in_one_table(run_all, capsys):
    status, results = run_all("--quick")
    assert status == 1
    output = capsys.readouterr().out
    for row in ("| [works](works.md) | what works | done |", "| fails | what fails | failed with 3 |"):
        assert row in output
    assert sorted(path.name for path in results.iterdir()) == ["README.md", "works.md"]
    text = (results / "works.md").read_text()
    assert re.match(r"# What works\n\n- command: `python benchmarks/works.py \S+/x --quick`\n- date: 20", text)
    for word in ("hardware: ", f"torch {torch.__version__.partition('+')[0]}", "'--quick']"):
        assert word in text
    assert output in (results / "README.md").read_text()


def test_some_benchmarks_in_full(run_all):
    status, results = run_all("--only", "works", "slow")
    assert status == 0
    assert "--full" in (results / "works.md").read_text()
    assert (results / "slow.md").read_text().endswith("```\n")


def test_every_benchmark_here_is_run_by_the_command():
    listed = {benchmark.command[0] for benchmark in script("run_all").BENCHMARKS}
    others = {"run_all.py", "rounds.py", "equality.py", "gpu.py", "__main__.py"}
    assert {path.name for path in FOLDER.glob("*.py")} - others <= listed
    assert all((FOLDER / name).is_file() for name in listed - {"-m"})


def test_the_runs_of_the_benchmark_of_reports_can_be_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bigain.report.document.draw", lambda groups, folder, samples: [[] for _ in groups])
    # Each method once.
    script("report").write_runs(tmp_path / "runs", 8, 100)
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith("8 runs, 7 compared image by image")


def test_growth_with_classes_has_everything_but_the_network(monkeypatch):
    growth = script("growth")
    monkeypatch.setattr(growth, "LATENT", (4, 8, 8))
    backbone = growth.Null("shapes_dit")
    backbone.load()
    backbone.denoiser.forward = None  # is never called
    row = growth.class_row(backbone, 6, 1, torch.device("cpu"))
    assert row.startswith(f"| 6 | {5 * 6 + 75} | ")
    whole, elimination = (float(cell.split()[0]) for cell in row.split("|")[3:5])
    assert 0 < elimination < whole


def test_memory_of_an_end_by_images():
    growth = script("growth")
    rows = {n: growth.with_images(n) for n in (1, 2)}
    # 6,580 evaluations per image.
    assert rows[2][0] == pytest.approx(2 * rows[1][0], rel=1e-3) == pytest.approx(2 * 6580 * 23.5e-9, rel=0.1)
    assert growth.image_table(rows)[-1].endswith("GB at 50,000 images.")
