"""Two real processes give the numbers of one, whatever is left to do; runs that are killed go on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from program import bigain

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
QUICK += ["--trainer.logger", "false", "--data.num_workers", "0"]
CLASSIFY = ["--config", "demo_tome.yaml", "--model.trials", "[1,2]", "--model.keep", "[2,1]", *QUICK]
GENERATE = ["--config", "demo_lgtm_generation.yaml", "--model.steps", "1", *QUICK]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigain"])
    # Two processes with two threads each would wait for each other's.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def started(*args):
    command = [sys.executable, "-m", "bigain", "predict", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def predict(*args, status=0):
    process = started(*args)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == status, told
    return told


def predict_here(*args):
    """With one thread, as the processes: sums of other numbers of threads differ in last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ended = bigain("predict", *args)
    torch.set_num_threads(threads)
    assert ended.returncode == 0, ended.stderr


def results(folder):
    return json.loads(Path(folder, "results.json").read_text())


def logged(folder):
    """Whole lines of every process's log, without the seconds."""
    logs = {}
    for path in sorted(Path(folder).glob("predictions/rank-*.jsonl")):
        # A torn line is not finished; the next run drops it.
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        logs[path.stem] = [{**json.loads(line), "seconds": None} for line in lines]
    return logs


def by_image(folder):
    lines = [line for lines in logged(folder).values() for line in lines]
    assert len({line["image_id"] for line in lines}) == len(lines), "an image was done twice"
    return {line["image_id"]: line for line in lines}


def keep(folder, rank, lines):
    """Let a process's log end early."""
    log = Path(folder, f"predictions/rank-{rank}.jsonl")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:lines]))


def without_clock(folder):
    found = results(folder)
    del found["timing"], found["evaluations"]["per_second"]
    return found


def test_two_processes_classify_as_one_and_one_goes_on_where_they_stopped():
    predict_here(*CLASSIFY, "--data.images", "5", "--data.batch_size", "2", "--output", "one")
    told = predict(*CLASSIFY, *TWO, "--data.images", "5", "--data.batch_size", "3", "--output", "two")
    assert told.count("run directory") == 1
    assert [len(lines) for lines in logged("two").values()] == [2, 3]
    assert by_image("two") == by_image("one")
    assert results("two")["metrics"] == results("one")["metrics"]
    # Each process warms up for three forwards, and both tell.
    times = [results(folder)["timing"]["denoiser"] for folder in ("one", "two")]
    assert 0 < times[1]["forwards"] <= times[0]["forwards"]
    assert times[1]["rows_per_second"] > 1.2 / times[1]["seconds_per_row"]
    one, two = (np.load(f"{folder}/predictions/predictions.npz") for folder in ("one", "two"))
    for name in set(one.files) - {"seconds"}:
        np.testing.assert_array_equal(one[name], two[name])
    # What two left over is dealt out again.
    keep("two", rank=0, lines=1)
    predict_here(*CLASSIFY, "--data.images", "5", "--output", "two")
    assert by_image("two") == by_image("one")
    assert results("two")["metrics"] == results("one")["metrics"]
    assert results("two")["timing"]["resumed_images"] == 4


@pytest.mark.slow
def test_two_processes_go_on_where_one_of_them_has_nothing_to_do():
    predict_here(*CLASSIFY, "--data.images", "5", "--output", "one")
    whole = by_image("one")
    keep("one", rank=0, lines=4)
    told = predict(*CLASSIFY, *TWO, "--data.images", "5", "--output", "one")
    assert told.count("run directory") == 1
    assert by_image("one") == whole
    assert results("one")["timing"]["resumed_images"] == 4


@pytest.mark.slow
def test_two_processes_race_as_one_and_one_goes_on_where_they_stopped():
    race = [*CLASSIFY[:2], *QUICK, "--model.trials", "[4]", "--model.keep", "[1]", "--model.race.error_level", "0.5"]
    predict(*race, "--data.images", "5", "--data.batch_size", "5", "--output", "one")
    predict(*race, *TWO, "--data.images", "5", "--data.batch_size", "2", "--output", "two")
    assert [len(lines) for lines in logged("two").values()] == [2, 3]
    assert by_image("two") == by_image("one")
    assert len({len(line["errors"]) for line in by_image("one").values()}) > 1
    keep("two", rank=1, lines=1)
    predict(*race, "--data.images", "5", "--data.batch_size", "1", "--output", "two")
    assert by_image("two") == by_image("one")
    assert results("two")["metrics"] == results("one")["metrics"]


@pytest.mark.slow
def test_two_processes_make_the_images_of_one():
    predict(*GENERATE, "--data.images", "5", "--output", "one")
    predict(*GENERATE, *TWO, "--data.images", "5", "--data.batch_size", "1", "--output", "two")
    for path in Path("one/samples").rglob("*.png"):
        assert path.read_bytes() == Path("two", path.relative_to("one")).read_bytes()
    for name, estimate in results("one")["metrics"].items():
        assert results("two")["metrics"][name]["value"] == pytest.approx(estimate["value"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_at_once_and_keeps_what_is_finished(number, status):
    process = started(*CLASSIFY, "--data.images", "500", "--data.batch_size", "1", "--output", "out")
    log = Path("out/predictions/rank-0.jsonl")
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n")):
        time.sleep(0.1)
    os.kill(process.pid, number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == status, told
    assert f"bigain: stopped by {number.name}; what is finished is kept, run the command again" in told
    assert len(by_image("out")) >= 1
    assert not Path("out/results.json").exists()


def killed_and_resumed(kills, images, seed):
    """Kill a run at random moments so many times, then let it finish; how many images were done at each kill."""
    command = [*CLASSIFY, "--data.images", str(images), "--data.batch_size", "1"]
    began = time.monotonic()
    predict(*command, "--output", "whole")
    whole = time.monotonic() - began
    draw, done = random.Random(seed), [0]
    for i in range(kills):
        process = started(*command, "--output", "killed")
        if i % 2:
            time.sleep(whole * draw.random())
        else:
            # Most of a short run is its start: the others come while images are being done.
            wanted = done[-1] + draw.randrange(1, max(2, images // kills))
            while process.poll() is None and len(by_image("killed")) < wanted:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, draw.choice((signal.SIGKILL, signal.SIGTERM)))
        process.communicate(timeout=60)
        done.append(len(by_image("killed")))
    assert done == sorted(done), "a finished image was lost"
    assert any(0 < count < images for count in done), "no kill came in the middle"
    predict(*command, "--output", "killed")
    assert by_image("killed") == by_image("whole")
    assert without_clock("killed") == without_clock("whole")


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_is_the_run_that_was_not():
    killed_and_resumed(3, 12, seed=0)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_is_the_run_that_was_not():
    killed_and_resumed(20, 60, seed=1)
