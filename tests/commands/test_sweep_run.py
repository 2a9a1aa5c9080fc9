"""`bigain sweep`: real tables of tiny runs, interrupted, failing, in shards, in several processes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigain.commands.main import main
from bigain.commands.sweep import load_table
from bigain.commands.sweep.cells import Shard, cells_of, choose
from bigain.runs.configuration import TASKS, options_for

# diffusers' Euler makes arrays of tensors in a way that numpy is about to change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
QUICK += ["--classification.model.trials", "[1,2]", "--classification.model.keep", "[2,1]"]
QUICK += ["--classification.data.images", "2", "--generation.model.steps=1", "--generation.data.images", "5"]
FEW = [
    "config: demo_none.yaml, dataset: shapes, method: none",
    "config: demo_lgtm.yaml, dataset: shapes, method: LGTM, vary: &ratios {compressor.ratio: [0.5]}",
    "config: demo_none_generation.yaml, dataset: shapes, method: none, task: generation",
    "config: demo_lgtm_generation.yaml, dataset: shapes, method: LGTM, task: generation, vary: *ratios",
]
NAMES = [
    "classification-shapes-none",
    "classification-shapes-LGTM-ratio-0.5",
    "generation-shapes-none",
    "generation-shapes-LGTM-ratio-0.5",
]


def table(*runs, name="mine.yaml"):
    Path(name).write_text("backbone: some\nruns:\n" + "".join(f"- {{{run}}}\n" for run in runs))
    return name


def sweep(table, *args, output="out"):
    return main(["sweep", table, *QUICK, "--output", output, *args])


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def states(file="out/sweep.json"):
    """Entries of the state file by cell; the CSV beside it says the same."""
    entries = json.loads(Path(file).read_text())["cells"]
    with Path(file).with_suffix(".csv").open(newline="") as lines:
        told = [{key: "" if value is None else str(value) for key, value in entry.items()} for entry in entries]
        assert list(csv.DictReader(lines)) == told
    return {entry["cell"]: entry for entry in entries}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of four cells."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["bigain"])
        assert sweep(table(*FEW)) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigain"])


@pytest.fixture
def again(finished, tmp_path):
    """The same sweep, to be continued here."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_every_cell_is_an_ordinary_run(again, capsys):
    entries = states()
    assert list(entries) == NAMES
    for name, entry in entries.items():
        found = results(f"out/{name}")
        assert (entry["status"], entry["directory"], entry["error"]) == ("finished", f"out/{name}", None)
        assert entry["value"] == found["metrics"][entry["metric"]]["value"]
        assert entry["seconds"] > 0
        assert found["task"] == name.partition("-")[0]
    quick = options_for(QUICK, {"classification"}, TASKS)
    assert main(["predict", "--config", "demo_lgtm.yaml", *quick, "--output", "alone"]) == 0
    alone, cell = (
        np.load(Path(folder) / "predictions/predictions.npz")["errors"] for folder in ("alone", f"out/{NAMES[1]}")
    )
    assert np.array_equal(alone, cell, equal_nan=True)
    assert results("alone")["fingerprint"] == results(f"out/{NAMES[1]}")["fingerprint"]
    # The uncompressed cell is what generated images are compared with.
    assert results("out/generation-shapes-LGTM-ratio-0.5")["metrics"]["psnr"]["n"] == 5
    assert "psnr" not in results("out/generation-shapes-none")["metrics"]
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "4 runs, 1 compared" in capsys.readouterr().out


def test_finished_cells_are_skipped_and_interrupted_ones_continued(again, capsys):
    one = Path("out") / NAMES[0]
    log = one / "predictions/rank-0.jsonl"
    whole = log.read_text()
    log.write_text(whole.splitlines(keepends=True)[0])
    (one / "results.json").unlink()
    before = {name: (Path("out") / name / "results.json").stat().st_mtime_ns for name in NAMES[1:]}
    assert sweep("mine.yaml") == 0
    told = capsys.readouterr().out
    assert re.search(r"\[1/4\] classification-shapes-none  finished  top1 [\d.]+  [\d.]+ s", told)
    assert told.count("finished before") == 3
    assert "bigain report out" in told
    assert results(one)["timing"]["resumed_images"] == 1
    assert len(log.read_text().splitlines()) == 2
    assert before == {name: (Path("out") / name / "results.json").stat().st_mtime_ns for name in NAMES[1:]}
    entries = states()
    assert [entries[name]["before"] for name in NAMES] == [False, True, True, True]
    assert all(entries[name]["seconds"] > 0 for name in NAMES)


def test_another_configuration_in_a_cells_directory_is_refused_and_nothing_else(again, capsys):
    assert sweep("mine.yaml", "--classification.seed", "3", "--only", "none") == 1
    entries = states()
    assert entries["classification-shapes-none"]["status"] == "failed"
    assert "seed: 0 -> 3" in entries["classification-shapes-none"]["error"]
    assert entries["generation-shapes-none"]["status"] == "finished"
    assert "refused" in capsys.readouterr().out


def test_what_is_missing_is_told_and_tried_again(again, capsys):
    # Four images at least make a distance.
    shutil.rmtree(Path("out") / NAMES[2])
    for times in (1, 2):
        assert sweep("mine.yaml", "--only", "none", "--generation.data.images", "3") == 1
        entry = states()[NAMES[2]]
        assert (entry["status"], entry["seconds"] is None) == ("incomplete", False), times
        assert "too few for a distance" in entry["error"]
    assert "1 finished, 1 incomplete" in capsys.readouterr().out


def test_a_cell_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    (tmp_path / "broken_compressor.py").write_text(
        "from bigain.compressors import LGTM\n"
        "class Broken(LGTM):\n"
        "    def plan(self, *args, **kwargs):\n"
        "        raise RuntimeError('out of luck')\n"
        "class Torn(LGTM):\n"
        "    def __init__(self, ratio: float):\n"
        "        raise TypeError('torn')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    Path("thesis/classification-shapes-kept").mkdir(parents=True)
    Path("thesis/classification-shapes-kept/thesis.tex").write_text("x")
    runs = [
        "config: demo_lgtm.yaml, dataset: shapes, method: refused, set: {compressor.ratio: 0.9}",
        "config: demo_lgtm.yaml, dataset: shapes, method: unlucky, set: {compressor: broken_compressor.Broken}",
        "config: demo_lgtm.yaml, dataset: shapes, method: torn, set: {compressor: broken_compressor.Torn}",
        "config: demo_lgtm.yaml, dataset: shapes, method: absent, set: {compressor.where.blocks: [9]}",
        "config: demo_none.yaml, dataset: shapes, method: kept",
        "config: demo_none.yaml, dataset: shapes, method: good",
    ]
    assert sweep(table(*runs), output="thesis") == 1
    entries = states("thesis/sweep.json")
    told = {name.rpartition("-")[2]: (entry["status"], entry["error"]) for name, entry in entries.items()}
    for method, words in {
        "refused": "0.9",
        "unlucky": "out of luck",
        "torn": "torn",
        "absent": "site 9",
        "kept": "not a run",
    }.items():
        status, error = told[method]
        assert status == "failed"
        assert words in error
        assert len(error.splitlines()) == 1
    assert told["good"] == ("finished", None)
    assert [path.name for path in Path("thesis/classification-shapes-kept").iterdir()] == ["thesis.tex"]
    streams = capsys.readouterr()
    assert "1 finished, 5 failed" in streams.out
    # What nobody expected can be looked for.
    assert "Traceback" in streams.err
    assert "broken_compressor.py" in streams.err


def test_a_lost_gpu_is_of_one_cell(monkeypatch, tmp_path):
    """After an illegal access this process can do nothing more on it; processes of their own can."""
    (tmp_path / "broken_compressor.py").write_text(
        "from bigain.compressors import LGTM\n"
        "class Broken(LGTM):\n"
        "    def plan(self, *args, **kwargs):\n"
        "        raise RuntimeError('out of luck')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    errors = iter([RuntimeError("CUDA error: an illegal memory access was encountered")])

    def synchronize():
        for error in errors:
            raise error

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    broken = "config: demo_lgtm.yaml, dataset: shapes, method: {}, set: {{compressor: broken_compressor.Broken}}"
    assert sweep(table(broken.format("first"), broken.format("second"), FEW[0])) == 1
    entries = states()
    told = {name.rpartition("-")[2]: (entry["status"], entry["error"]) for name, entry in entries.items()}
    assert told["first"] == ("failed", "RuntimeError: out of luck")
    status, error = told["second"]
    assert status == "failed"
    assert error.startswith("RuntimeError: out of luck (see ")
    assert told["none"] == ("finished", None)
    assert {path.stem.rpartition("-")[2] for path in Path("out/logs").iterdir()} == {"second", "none"}


def test_what_breaks_down_does_not_stop_a_dry_run(monkeypatch, tmp_path, capsys):
    (tmp_path / "unlucky_compressor.py").write_text(
        "from bigain.compressors import LGTM\n"
        "class Unlucky(LGTM):\n"
        "    def plan(self, *args, **kwargs):\n"
        "        raise RuntimeError('out of luck')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    unlucky = "config: demo_lgtm.yaml, dataset: shapes, method: X, set: {compressor: unlucky_compressor.Unlucky}"
    assert sweep(table(unlucky, FEW[0]), "--dry-run") == 1
    streams = capsys.readouterr()
    assert "classification-shapes-X cannot be counted: RuntimeError: out of luck" in streams.out
    assert "1 cells, " in streams.out
    assert "unlucky_compressor.py" in streams.err


def test_a_directory_that_cannot_be_read_does_not_stop_the_others(capsys):
    run = f"config: demo_none.yaml, dataset: shapes, method: {'x' * 300}"
    refused = "config: demo_lgtm.yaml, dataset: shapes, method: refused, set: {compressor.ratio: 0.9}"
    assert sweep(table(run, refused), output="fresh") == 1
    entries = list(states("fresh/sweep.json").values())
    assert [entry["status"] for entry in entries] == ["failed", "failed"]
    assert "too long" in entries[0]["error"]
    assert "Traceback" not in capsys.readouterr().err
    assert sweep("mine.yaml", "--dry-run", output="fresh") == 1
    assert re.search(r"x{300} +incomplete ", capsys.readouterr().out)


def test_no_cell_at_all_is_bad_input(capsys):
    assert sweep(table(*FEW), "--nonsense", "1") == 2
    assert "no cell of mine can run" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["table1", "table4", "demo"])
def test_shards_share_the_cells(name):
    cells = cells_of(load_table(name), Path("out"), [])
    for only in (None, ["LGTM", "none"]):
        wanted = choose(cells, only, None)
        for count in (1, 3, 16, 200):
            shares = [choose(cells, only, Shard(index, count)) for index in range(1, count + 1)]
            assert sorted(cell.number for share in shares for cell in share) == [cell.number for cell in wanted]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_have_a_state_each_and_find_each_others_images(capsys):
    mine = table(*FEW)
    # LGTM's generation comes first, without anything to compare with.
    assert sweep(mine, "--shard", "2/2") == 0
    assert list(states("out/sweep-2-of-2.json")) == [NAMES[1], NAMES[3]]
    assert "psnr" not in results(f"out/{NAMES[3]}")["metrics"]
    assert sweep(mine, "--shard=1/2") == 0
    assert list(states("out/sweep-1-of-2.json")) == [NAMES[0], NAMES[2]]
    capsys.readouterr()
    assert sweep(mine) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert "psnr" in results(f"out/{NAMES[3]}")["metrics"]
    assert sweep(mine, "--shard", "5/5", output="elsewhere") == 0
    assert "none in this share" in capsys.readouterr().out


def test_a_dry_run_needs_neither_weights_nor_dataset(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["sweep", "table4.yaml", "--dry-run", "--only", "none", "--trainer.accelerator", "gpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("runs/")}
    assert len(rows) == 8
    assert rows["runs/table4/classification-pets-none"] == ["pending", "3,669*", "260", "804.257", "767.2"]
    assert rows["runs/table4/classification-imagenet1k-none"][:3] == ["pending", "2,000*", "6,550"]
    assert rows["runs/table4/generation-imagenet1k-none"] == ["pending", "50,000*", "100", "804.257", "4,021"]
    evaluations = 3669 * 260 + 5000 * 575 + 2000 * 6550 + 5000 * 475 + (3669 + 5000 + 50_000 + 5000) * 100
    total = f"8 cells, {evaluations * 804.257 / 1e6:,.0f} PFLOPs"
    assert f"{total}; left to do: {total}" in lines
    assert not Path("runs").exists()


def test_a_dry_run_tells_what_the_run_will_say(again, capsys):
    (Path("out") / NAMES[3] / "results.json").unlink()
    before = sorted(Path("out").rglob("*"))
    assert sweep("mine.yaml", "--dry-run") == 0
    told = capsys.readouterr().out
    assert sorted(Path("out").rglob("*")) == before
    pflops = 0.0
    for name in NAMES[:3]:
        found = results(f"out/{name}")
        images, evaluations = found["dataset"]["images"], found["evaluations"]["per_image"]
        gflops = found["flops"]["gflops_per_evaluation"]
        pflops += images * evaluations * gflops / 1e6
        cost = f"{images}  +{evaluations:g}  +{gflops:.4g}  +{images * evaluations * gflops / 1e6:.4g}"
        assert re.search(rf"out/{re.escape(name)} +finished +{cost}\n", told), told
    assert re.search(rf"out/{re.escape(NAMES[3])} +pending ", told)
    assert "left to do: 1 cells" in told
    assert sweep("mine.yaml", "--dry-run", "--only", "none", "--seed", "3") == 1
    told = capsys.readouterr().out
    assert re.search(rf"out/{NAMES[0]} +refused ", told)
    assert f"{NAMES[0]} is refused: out/{NAMES[0]} holds a run with another configuration" in told
    assert "left to do: 0 cells" in told


def test_a_dry_run_says_what_cannot_be_counted(capsys):
    Path("broken.yaml").write_text("seed: 0\nmodel: models/shapes_dit.yaml\n")
    runs = [FEW[0], "config: demo_lgtm.yaml, dataset: shapes, method: X, set: {compressor.where.blocks: [9]}"]
    assert sweep(table(*runs), "--dry-run") == 1
    assert "classification-shapes-X cannot be counted" in capsys.readouterr().out
    # What is wrong with every cell is said once.
    assert sweep(table(*FEW[:2]), "--dry-run", "--model.nonsense", "1") == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("nonsense")) == ("", 1)


def test_options_are_for_all_or_for_a_task_or_a_dataset():
    given = ["--data.root", "d", "--pets.data.root=p", "--coco.data.root", "c", "--generation.model.steps", "9"]
    given += ["--coco.generation.seed", "-1", "--generation.pets.data.limit", "5"]
    cells = cells_of(load_table("table4"), Path("out"), given)
    chosen = {(cell.run.task, cell.run.dataset): cell.command for cell in cells if cell.run.method == "none"}

    def tail(task, dataset):
        command = chosen[task, dataset]
        return list(command[command.index("--data.root") :])

    assert tail("classification", "imagenet1k")[:2] == ["--data.root", "d"]
    assert tail("classification", "imagenet1k")[2] == "--output"
    assert tail("classification", "pets")[2:4] == ["--data.root=p", "--output"]
    assert tail("generation", "pets")[2:-2] == ["--data.root=p", "--model.steps", "9", "--data.limit", "5"]
    assert tail("generation", "coco")[2:-2] == ["--data.root", "c", "--model.steps", "9", "--seed", "-1"]


def test_encoded_images_are_shared(stand_in, pets, capsys):
    own = ["--model.backbone.model", str(stand_in), "--data.image_size", "32", "--data.num_workers", "0"]
    own += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    own += ["--model.trials", "[1]", "--model.keep", "[1]"]
    runs = [
        "config: pets_none.yaml, dataset: pets, method: none",
        "config: pets_tome.yaml, dataset: pets, method: ToMe, vary: {compressor.ratio: [0.5]}",
    ]
    assert main(["sweep", table(*runs), *own, "--trainer.devices", "1", "--output", "out"]) == 0
    latents = list(Path("out/latents").rglob("*.safetensors"))
    assert len(latents) == 3
    written = {path: path.stat().st_mtime_ns for path in latents}
    command = ["predict", "--config", "pets_tome.yaml", "--compressor.ratio", "0.5", *own]
    assert main([*command, "--trainer.devices", "1", "--output", "alone"]) == 0
    cell, alone = (
        np.load(Path(folder) / "predictions/predictions.npz")["errors"]
        for folder in ("out/classification-pets-ToMe-ratio-0.5", "alone")
    )
    assert np.array_equal(cell, alone, equal_nan=True)
    # A run of its own, which had no cache, left the sweep's alone.
    assert written == {path: path.stat().st_mtime_ns for path in Path("out/latents").rglob("*.safetensors")}


@pytest.mark.slow
def test_two_processes_per_cell_and_one_that_fails_alone(tmp_path):
    """One of two real processes fails while the other waits for it; the next cell is not touched by that."""
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "photos" / name / "1.png")
    Path("photos/b/1.png").write_bytes(b"no image")
    runs = [
        "config: demo_unet_none.yaml, dataset: photos, method: none",
        "config: demo_none.yaml, dataset: shapes, method: none",
    ]
    own = ["--photos.data", "{class_path: ImageFolder, init_args: {root: photos, image_size: 32, batch_size: 1}}"]
    own += ["--photos.data.num_workers", "0", "--shapes.data.images", "3", "--model.trials", "[1]"]
    own += ["--model.keep", "[1]", *QUICK[:6], "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert main(["sweep", table(*runs), *own, "--output", "out"]) == 1
    bad, good = states().values()
    assert (bad["status"], good["status"]) == ("failed", "finished")
    assert re.search(r"b/1\.png cannot be decoded .* \(see out/logs/classification-photos-none\.log\)", bad["error"])
    found = results("out/classification-shapes-none")
    assert (found["dataset"]["images"], found["environment"]["world_size"]) == (3, 2)
    logs = Path("out/classification-shapes-none/predictions").glob("rank-*.jsonl")
    assert sorted(len(path.read_text().splitlines()) for path in logs) == [1, 2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["bigain sweep TABLE"]),
        (["--shard", "1/2"], ["bigain sweep TABLE"]),
        (["table7"], ["no table table7", "demo_unet", "table12"]),
        (["demo", "table4"], ["'table4'", "one table"]),
        (["demo", "--shard", "0/4"], ["--shard", "'0/4'", "3/16"]),
        (["demo", "--shard", "5/4"], ["'5/4'"]),
        (["demo", "--shard", "x"], ["'x'"]),
        (["demo", "--only", "LGMT"], ["'LGMT'", "ToMe, LGTM"]),
        (["demo", "--only"], ["--only", "--help"]),
        (["demo", "--baseline", "true"], ["--baseline"]),
        (["twice.yaml"], ["twice: two runs would be classification-shapes-LGTM"]),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_bad_command_lines(capsys, args, words):
    table(FEW[0], *["config: demo_lgtm.yaml, dataset: shapes, method: LGTM"] * 2, name="twice.yaml")
    assert main(["sweep", *args]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    (message,) = streams.err.strip().splitlines()
    for word in words:
        assert word in message
    assert not Path("runs").exists()


def test_help_imports_nothing_heavy():
    code = "import sys; from bigain.commands.main import main; main(['sweep', '--help'])"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--shard I/N" in done.stdout
