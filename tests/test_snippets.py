"""The pages' examples, run as they are printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import forward, inputs, save_stable_diffusion, tiny_dit
from PIL import Image
from synthetic_runs import classification

from bigain.commands.main import main
from bigain.compressors import LGTM

ROOT = Path(__file__).parents[1]
QUICK = ["--model.trials", "[2]", "--model.keep", "[1]", "--trainer.accelerator", "cpu", "--inspect", "0"]


def blocks(page, language):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_files(page, language):
    """Blocks that begin with the name of their file, as these files."""
    for block in blocks(page, language):
        if found := re.match(r"# (\w+\.\w+)\n", block):
            Path(found[1]).write_text(block, encoding="utf-8")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bigain"])
    yield
    for name in ("my_methods", "my_scores", "my_data"):
        sys.modules.pop(name, None)


def columns(folder):
    with np.load(Path(folder, "predictions/predictions.npz")) as file:
        return dict(file)


# diffusers would rather have another offset in the scheduler of the little model.
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_quick_start(capsys):
    """YAML and Python compute the same bits, and the pipeline is changed by the compressor alone."""
    save_stable_diffusion(Path("models/sd2"))
    write_files("index.md", "yaml")
    namespace = {}
    for block in blocks("index.md", "python"):
        exec(compile(block, "index.md", "exec"), namespace)
    assert capsys.readouterr().out.count("test/00000") == 2
    assert main(["predict", "--config", "mine.yaml", "--output", "runs/mine", "--inspect", "0"]) == 0
    in_python, in_yaml = columns("runs/python"), columns("runs/mine")
    assert in_python["errors"].shape == (2, 16, 20)
    for name in in_python.keys() - {"seconds"}:
        np.testing.assert_array_equal(in_python[name], in_yaml[name])
    assert main(["compare", "runs/mine", "runs/python"]) == 0
    image, other = (np.asarray(namespace[name], np.int16) for name in ("image", "other"))
    assert abs(image - other).max() > 0


def test_adding_a_method_a_score_and_a_dataset():
    write_files("adding.md", "python")
    import my_data
    import my_methods
    import my_scores

    model, given = tiny_dit(), inputs("dit")
    plain = forward(model, given)
    for compressor in (
        my_methods.PairMerge(ratio=0.3),
        my_methods.PeakKV(factor=2),
        LGTM(ratio=0.5, score=my_scores.local_deviation),
    ):
        with compressor.applied_to(model):
            assert not torch.allclose(forward(model, given), plain, atol=1e-4)
    command = ["predict", "--config", "demo_none.yaml", "--data.images", "1", *QUICK]
    assert main([*command, "--compressor", "my_methods.PairMerge", "--compressor.ratio", "0.3", "--output", "out"]) == 0
    sites = json.loads(Path("out/results.json").read_text())["sites"]
    assert [site["tokens_out"] for site in sites] == [256 - int(256 * 0.3)] * 4
    Image.new("RGB", (20, 30), (200, 0, 0)).save("a.png")
    Path("list.csv").write_text("a.png,red\n")
    data = my_data.Colours(".", image_size=16, num_workers=0)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["image_id"] == ["a.png"]
    assert batch["labels"] == [(0,)]
    assert batch["image"].shape == (1, 3, 16, 16)


def test_pair_merge_is_the_loop_of_its_definition():
    write_files("adding.md", "python")
    import my_methods

    grid = my_methods.Grid(2, 5)
    x = torch.randn(2, grid.n, 3, generator=torch.Generator().manual_seed(0))
    plan = my_methods.pair_plan(x, grid, 2)
    for row, tokens in enumerate(x):
        alike = {}
        for y in range(2):
            for left in (5 * y, 5 * y + 2):
                alike[left] = torch.cosine_similarity(tokens[left], tokens[left + 1], dim=0).item()
        gone = sorted(left + 1 for left in sorted(alike, key=alike.get)[-2:])
        assert plan.removed[row].tolist() == gone
        assert plan.kept[row][plan.target[row]].tolist() == [token - 1 for token in gone]


@pytest.mark.slow
def test_methods_from_elsewhere_take_the_contract_tests():
    """One network, for time; the page's command runs all."""
    write_files("adding.md", "python")
    paths = os.pathsep.join([os.getcwd(), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    contract = ROOT / "tests/compressors/test_contract.py"
    ended = subprocess.run(
        [*command, str(contract), "-k", "(PairMerge-0.3 or PeakKV) and dit"],
        env={**os.environ, "BIGAIN_CASES": "my_cases", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) >= 24


def test_groups_are_tested_on_the_same_images(capsys):
    for name, wrong in (("none", ()), ("lgtm", range(20))):
        label = np.arange(60) % 2
        prediction = np.where(np.isin(np.arange(60), wrong) & (label == 1), 0, label)
        classification(f"runs/{name}", prediction == label, label=label, prediction=prediction)
    (block,) = blocks("fairness.md", "python")
    exec(compile(block, "fairness.md", "exec"), {})
    _, unchanged, changed, gap = capsys.readouterr().out.splitlines()
    assert unchanged.split()[:4] == ["0", "30", "100.0%", "100.0%"]
    # Ten of thirty are lost: p = 2 * 0.5^10, twice for two groups.
    assert changed.split()[:5] == ["1", "30", "100.0%", "66.7%", "-33.3%"]
    assert float(changed.split()[-1]) == pytest.approx(4 * 0.5**10, rel=0.01)
    assert gap.endswith("0.0% before, 33.3% after")


def test_reading_predictions(capsys):
    assert main(["predict", "--config", "demo_lgtm.yaml", "--data.images", "3", "--output", "runs/lgtm", *QUICK]) == 0
    capsys.readouterr()
    namespace = {}
    for block in blocks("results.md", "python"):
        exec(compile(block, "results.md", "exec"), namespace)
    printed = capsys.readouterr().out
    found = json.loads(Path("runs/lgtm/results.json").read_text())
    assert f"{found['metrics']['top1']['value']:.1%}" in printed


def keys_of(value, free):
    """Names of all fields, but for those whose names are data."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in free:
                yield from keys_of(item, free)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item, free)


def test_every_key_of_the_results_is_explained(capsys):
    main(["predict", "--config", "demo_lgtm.yaml", "--data.images", "1", "--output", "a", *QUICK])
    generate = ["--data.images", "4", "--model.steps", "1", "--trainer.accelerator", "cpu", "--inspect", "0"]
    main(["predict", "--config", "demo_lgtm_generation.yaml", "--output", "b", "--baseline", "true", *generate])
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    free = {"metrics", "packages", "settings", "changed", "scheduler", "scheduler_options"}
    for folder in "ab":
        results = json.loads(Path(folder, "results.json").read_text())
        assert set(keys_of(results, free)) <= explained, set(keys_of(results, free)) - explained
        for estimate in results["metrics"].values():
            assert set(estimate) <= explained
    assert set(columns("a")) <= explained
    files = {path.name for path in (*Path("a").iterdir(), *Path("b").iterdir(), *Path("a/predictions").iterdir())}
    for name in files - {"rank-0.jsonl", "baseline"}:
        assert name.startswith(".") or name in page, name
