"""`bigain sweep` on tiny tables: interrupted, failing, in shards, in several processes."""

import json
import os
import re
import shutil
import signal
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from program import program_in

import bigain.commands.sweep.command
from bigain.commands.configs import options_for
from bigain.commands.main import main
from bigain.commands.sweep.subprocess_run import failure_in, run_in_subprocess
from bigain.commands.sweep.tables import choose, load_table, marked_options
from bigain.runs.schema import TASKS

# diffusers' Euler creates arrays of tensors in a way that numpy is about to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("elsewhere"),
]

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
RESULTS = [Path("out") / name / "results.json" for name in NAMES]
UNLUCKY = (
    "from bigain.compressors import LGTM\n"
    "class Unlucky(LGTM):\n"
    "    def plan(self, *args, **kwargs):\n"
    "        raise RuntimeError('out of luck')\n"
)
unlucky = "config: demo_lgtm.yaml, dataset: shapes, method: unlucky, set: {compressor: unlucky_compressor.Unlucky}"


def table(*runs, name="mine.yaml"):
    Path(name).write_text("backbone: some\nruns:\n" + "".join(f"- {{{run}}}\n" for run in runs))
    return name


def sweep(table, *args, output="out"):
    return main(["sweep", table, *QUICK, "--output", output, *args])


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def states(output):
    """Status and the rest of the last line of each cell."""
    lines = re.findall(r"^\[\d+/\d+\] (\S+)  (finished before|\w+)(.*)$", output, re.MULTILINE)
    return {cell: (status, rest) for cell, status, rest in lines}


def run_in_this_process(command, log, show):
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main(command)


@pytest.fixture
def quick_cells(monkeypatch):
    """Cells run in this process: starting Python takes longer than the cells of these tests."""
    monkeypatch.setattr(bigain.commands.sweep.command, "run_in_subprocess", run_in_this_process)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of four cells."""
    folder = tmp_path_factory.mktemp("finished")
    with program_in(folder) as patch:
        patch.setattr(bigain.commands.sweep.command, "run_in_subprocess", run_in_this_process)
        assert sweep(table(*FEW)) == 0
    return folder


@pytest.fixture
def again(finished, tmp_path, quick_cells):
    """The same sweep, to be continued here."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_every_cell_is_an_ordinary_run(again, capsys):
    assert [path.parent.name for path in RESULTS if path.is_file()] == NAMES
    quick = options_for(QUICK, {"classification"}, TASKS)
    assert main(["predict", "--config", "demo_lgtm.yaml", *quick, "--output", "alone"]) == 0
    alone, cell = (
        np.load(Path(folder) / "predictions/predictions.npz")["errors"] for folder in ("alone", f"out/{NAMES[1]}")
    )
    assert np.array_equal(alone, cell, equal_nan=True)
    assert results("alone")["fingerprint"] == results(f"out/{NAMES[1]}")["fingerprint"]
    # Generated images are compared with those of the uncompressed cell.
    assert results(f"out/{NAMES[3]}")["metrics"]["psnr"]["n"] == 5
    assert "psnr" not in results(f"out/{NAMES[2]}")["metrics"]
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "4 runs, 1 compared" in capsys.readouterr().out


def test_finished_cells_are_skipped_and_interrupted_ones_continued(again, capsys):
    log = Path("out") / NAMES[0] / "predictions/rank-0.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    RESULTS[0].unlink()
    before = [path.stat().st_mtime_ns for path in RESULTS[1:]]
    assert sweep("mine.yaml") == 0
    output = capsys.readouterr().out
    assert output.startswith("mine: 4 of 4 cells, in out")
    assert re.search(r"\[1/4\] classification-shapes-none  finished  top1 [\d.]+ % \(.*\)  [\d.]+ s", output)
    assert [status for status, _ in states(output).values()] == ["finished", *["finished before"] * 3]
    assert "bigain report out" in output
    assert results(f"out/{NAMES[0]}")["timing"]["resumed_images"] == 1
    assert len(log.read_text().splitlines()) == 2
    assert before == [path.stat().st_mtime_ns for path in RESULTS[1:]]


def test_only_a_cell_with_another_configuration_is_refused(again, capsys):
    assert sweep("mine.yaml", "--classification.seed", "3", "--only", "none") == 1
    cells = states(capsys.readouterr().out)
    assert cells[NAMES[0]][0] == "refused"
    assert "seed: 0 -> 3" in cells[NAMES[0]][1]
    assert cells[NAMES[2]][0] == "finished before"


def test_an_incomplete_cell_is_reported_and_tried_again(again, capsys):
    # A distance needs at least four images.
    shutil.rmtree(RESULTS[2].parent)
    for _ in range(2):
        assert sweep("mine.yaml", "--only", "none", "--generation.data.images", "3") == 1
        output = capsys.readouterr().out
        assert states(output)[NAMES[2]][0] == "incomplete"
        assert "too few for a distance" in states(output)[NAMES[2]][1]
        assert "cells: 1 finished, 1 incomplete" in output


def test_a_failed_cell_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    """What cannot work is refused before a process starts; the one that fails is a real one."""

    def in_a_process_if_unlucky(command, log, show):
        (run_in_subprocess if "unlucky" in log.name else run_in_this_process)(command, log, show)

    monkeypatch.setattr(bigain.commands.sweep.command, "run_in_subprocess", in_a_process_if_unlucky)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(tmp_path)
    torn = "class Torn(LGTM):\n    def __init__(self, ratio: float):\n        raise TypeError('torn')\n"
    Path("unlucky_compressor.py").write_text(UNLUCKY + torn)
    Path("thesis/classification-shapes-kept").mkdir(parents=True)
    Path("thesis/classification-shapes-kept/thesis.tex").write_text("x")
    runs = [
        "config: demo_lgtm.yaml, dataset: shapes, method: refused, set: {compressor.ratio: 0.9}",
        unlucky,
        "config: demo_lgtm.yaml, dataset: shapes, method: torn, set: {compressor: unlucky_compressor.Torn}",
        "config: demo_none.yaml, dataset: shapes, method: kept",
        f"config: demo_none.yaml, dataset: shapes, method: {'x' * 300}",
        "config: demo_none.yaml, dataset: shapes, method: good",
    ]
    assert sweep(table(*runs), output="thesis") == 1
    streams = capsys.readouterr()
    by_method = {name.rpartition("-")[2]: state for name, state in states(streams.out).items()}
    for method, status, words in [
        ("refused", "refused", "0.9"),
        ("torn", "refused", "torn"),
        ("kept", "refused", "not a run"),
        ("x" * 300, "refused", "too long"),
        ("unlucky", "failed", "RuntimeError: out of luck (see thesis/logs/classification-shapes-unlucky.log)"),
        ("good", "finished", "top1"),
    ]:
        assert by_method[method][0] == status
        assert words in by_method[method][1]
    assert "cells: 4 refused, 1 failed, 1 finished" in streams.out
    assert [path.name for path in Path("thesis/classification-shapes-kept").iterdir()] == ["thesis.tex"]
    # The traceback of an unexpected error is kept.
    assert "unlucky_compressor.py" in Path("thesis/logs/classification-shapes-unlucky.log").read_text()
    # The state is read from directories and logs.
    assert sweep("mine.yaml", "--dry-run", output="thesis") == 1
    output = capsys.readouterr().out
    assert "classification-shapes-unlucky cannot be counted: RuntimeError: out of luck" in output
    assert "classification-shapes-unlucky is failed: RuntimeError: out of luck (see" in output
    assert "classification-shapes-refused is refused: ratio" in output
    assert re.search(r"good +finished ", output)


def test_no_cell_at_all_is_bad_input(capsys):
    for dry in ([], ["--dry-run"]):
        assert sweep(table(*FEW), "--model.nonsense", "1", *dry) == 2
        message = capsys.readouterr().err
        assert "no cell of mine can run" in message
        assert message.count("nonsense") == 1
    assert not Path("out").exists()


def test_a_cell_that_is_not_applicable_is_not_run_and_nothing_is_missing(capsys):
    options = "set: {compressor: compressors/feature_cache.yaml}"
    assert sweep(table(f"config: demo_none.yaml, dataset: shapes, method: FeatureCache, {options}")) == 0
    assert re.search(r"FeatureCache +n/a .*n/a: not a function of one step: it reuses", capsys.readouterr().out)
    assert not Path("out/classification-shapes-FeatureCache").exists()


@pytest.mark.parametrize("name", ["table4", "demo"])
def test_shards_share_the_cells(name):
    cells = load_table(name)
    for only in (None, ["LGTM", "none"]):
        wanted = choose(cells, only, None)
        for count in (3, 200):
            shares = [choose(cells, only, f"{index}/{count}") for index in range(1, count + 1)]
            assert sorted(cell.name for share in shares for cell in share) == sorted(cell.name for cell in wanted)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_find_each_others_images(again, capsys):
    for path in RESULTS[2:]:
        shutil.rmtree(path.parent)
    # LGTM's generation comes first, without anything to compare with.
    assert sweep("mine.yaml", "--shard", "2/2") == 0
    assert list(states(capsys.readouterr().out)) == [NAMES[1], NAMES[3]]
    assert "psnr" not in results(RESULTS[3].parent)["metrics"]
    assert sweep("mine.yaml", "--shard=1/2") == 0
    assert sweep("mine.yaml") == 0
    assert capsys.readouterr().out.count("finished before") == 5
    assert "psnr" in results(RESULTS[3].parent)["metrics"]
    assert sweep("mine.yaml", "--shard", "5/5", output="elsewhere") == 0
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


def test_a_dry_run_agrees_with_the_results(again, capsys):
    RESULTS[3].unlink()
    before = sorted(Path("out").rglob("*"))
    assert sweep("mine.yaml", "--dry-run") == 0
    output = capsys.readouterr().out
    assert sorted(Path("out").rglob("*")) == before
    for name in NAMES[:3]:
        run = results(f"out/{name}")
        images, evaluations = run["dataset"]["images"], run["evaluations"]["per_image"]
        gflops = run["flops"]["gflops_per_evaluation"]
        cost = f"{images}  +{evaluations:g}  +{gflops:.4g}  +{images * evaluations * gflops / 1e6:.4g}"
        assert re.search(rf"out/{re.escape(name)} +finished +{cost}\n", output), output
    assert re.search(rf"out/{re.escape(NAMES[3])} +pending ", output)
    assert re.search(r"left to do: 1 cell, \S+ PFLOPs, about \d+ s on one device at the speed", output)


def test_a_dry_run_reports_what_cannot_be_counted(capsys):
    runs = [FEW[0], "config: demo_lgtm.yaml, dataset: shapes, method: X, set: {compressor.where.blocks: [9]}"]
    assert sweep(table(*runs), "--dry-run") == 1
    output = capsys.readouterr().out
    assert "classification-shapes-X cannot be counted" in output
    assert re.search(r"^1 cell, \S+ PFLOPs; left to do: .*; not in these: 1 cell that cannot be counted$", output, re.M)


def test_options_are_for_all_or_for_a_task_or_a_dataset():
    options = ["--data.root", "d", "--pets.data.root=p", "--coco.data.root", "c", "--generation.model.steps", "9"]
    options += ["--coco.generation.seed", "-1", "--generation.pets.data.limit", "5"]
    cells = load_table("table4")
    own = {(cell.task, cell.dataset): marked_options(cell, cells, options)[2:] for cell in cells}
    assert own["classification", "imagenet1k"] == []
    assert own["classification", "pets"] == ["--data.root=p"]
    assert own["generation", "pets"] == ["--data.root=p", "--model.steps", "9", "--data.limit", "5"]
    assert own["generation", "coco"] == ["--data.root", "c", "--model.steps", "9", "--seed", "-1"]


def test_encoded_images_are_shared(stand_in, pets, quick_cells):
    options = ["--model.backbone.model", str(stand_in), "--data.image_size", "32", "--data.num_workers", "0"]
    options += [*QUICK[:6], "--model.trials", "[1]", "--model.keep", "[1]", "--trainer.devices", "1"]
    runs = [
        "config: pets_none.yaml, dataset: pets, method: none",
        "config: pets_tome.yaml, dataset: pets, method: ToMe, vary: {compressor.ratio: [0.5]}",
    ]
    assert main(["sweep", table(*runs), *options, "--output", "out", "--only", "none"]) == 0
    written = {path: path.stat().st_mtime_ns for path in Path("out/latents").rglob("*.safetensors")}
    assert len(written) == 3
    assert main(["sweep", "mine.yaml", *options, "--output", "out"]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in Path("out/latents").rglob("*.safetensors")}


@pytest.mark.slow
def test_a_failed_rank_ends_its_cell_alone(tmp_path, capsys):
    """One of two real processes fails while the other waits for it; the next cell is not affected."""
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "photos" / name / "1.png")
    Path("photos/b/1.png").write_bytes(b"no image")
    runs = [
        "config: demo_unet_none.yaml, dataset: photos, method: none",
        "config: demo_none.yaml, dataset: shapes, method: none",
    ]
    options = ["--photos.data", "{class_path: ImageFolder, init_args: {root: photos, image_size: 32, batch_size: 1}}"]
    options += ["--photos.data.num_workers", "0", "--shapes.data.images", "3", "--model.trials", "[1]"]
    options += ["--model.keep", "[1]", *QUICK[:6], "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert main(["sweep", table(*runs), *options, "--output", "out"]) == 1
    bad, good = states(capsys.readouterr().out).values()
    assert (bad[0], good[0]) == ("failed", "finished")
    assert re.search(r"b/1\.png cannot be decoded .* \(see out/logs/classification-photos-none\.log\)", bad[1])
    run = results("out/classification-shapes-none")
    assert (run["dataset"]["images"], run["environment"]["world_size"]) == (3, 2)


def test_a_terminated_sweep_ends_its_cell(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho starting\nsleep 60 &\necho $! > child\nwait\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    shown = []

    def show(line):
        shown.append(line)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_in_subprocess(["predict"], tmp_path / "logs/cell.log", show)
    assert (ended.value.code, shown, signal.getsignal(signal.SIGTERM)) == (143, ["starting"], before)
    child = int(Path("child").read_text())
    gone = threading.Event()
    for _ in range(50):
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            state = "gone"
        if state in ("gone", "Z"):
            return
        gone.wait(0.1)
    pytest.fail("a process of the cell is still running")


def test_a_log_holds_the_reason_of_a_failure(tmp_path, monkeypatch):
    log = tmp_path / "logs/cell.log"
    run_in_subprocess(["sweep", "absent"], log, print)
    assert failure_in(log).startswith("no table absent")
    run_in_subprocess(["--version"], log, print)
    assert failure_in(log) is None
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    run_in_subprocess([], log, print)
    assert failure_in(log) == f"the process ended with status -9 (see {log})"


@pytest.mark.parametrize("path", [f"logs/{NAMES[0]}.lock", f"{NAMES[0]}/.lock-0"])
def test_cells_that_another_command_is_doing_are_passed_over(again, monkeypatch, capsys, path):
    for name in NAMES[:2]:
        (Path("out") / name / "results.json").unlink()
    ran = []
    monkeypatch.setattr(
        bigain.commands.sweep.command, "run_in_subprocess", lambda command, log, *_: ran.append(log.stem)
    )
    with FileLock(Path("out") / path):
        assert sweep("mine.yaml", "--only", "none", "LGTM") == 1
    assert ran == [NAMES[1]]
    assert states(capsys.readouterr().out)[NAMES[0]] == ("elsewhere", "  another command is doing it")


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_a_sweep_is_one_process(capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    assert sweep("demo") == 2
    assert "4 processes were launched, but bigain sweep is one" in capsys.readouterr().err


def test_a_sweep_runs_in_an_interactive_allocation(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert sweep("demo", "--only", "nothing") == 2
    assert "'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["required", "table"]),
        (["table99"], ["no table table99", "demo_unet", "table12"]),
        (["demo", "table4"], ["table4", "--help"]),
        (["demo", "--shard", "0/4"], ["--shard", "'0/4'", "3/16"]),
        (["demo", "--shard", "5/4"], ["'5/4'"]),
        (["demo", "--only", "LGMT"], ["'LGMT'", "ToMe, LGTM"]),
        (["demo", "--only"], ["--only", "--help"]),
        (["demo", "--only", "none", "--baseline", "true"], ["--baseline"]),
        (["twice.yaml"], ["twice.yaml: two runs would be classification-shapes-LGTM"]),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_bad_command_lines(capsys, args, words):
    table(FEW[0], *["config: demo_lgtm.yaml, dataset: shapes, method: LGTM"] * 2, name="twice.yaml")
    assert main(["sweep", *args]) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in message
    assert not Path("runs").exists()
