"""Two real processes give the numbers of one; runs that are killed continue."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from program import Forked, bigain

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
QUICK += ["--trainer.logger", "false", "--data.num_workers", "0", "--inspect", "0"]
CLASSIFY = ["--config", "demo_tome.yaml", "--model.trials", "[1,2]", "--model.keep", "[2,1]", *QUICK]
GENERATE = ["--config", "demo_lgtm_generation.yaml", "--model.steps", "1", *QUICK]
pytestmark = pytest.mark.usefixtures("elsewhere")


def predict(*args):
    status, text = Forked("predict", *args).wait()
    assert status == 0, text
    return text


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


def test_two_processes_classify_as_one_and_one_goes_on_where_they_stopped():
    predict_here(*CLASSIFY, "--data.images", "5", "--data.batch_size", "2", "--output", "one")
    text = predict(*CLASSIFY, *TWO, "--data.images", "5", "--data.batch_size", "3", "--output", "two")
    assert text.count("run directory") == 1
    assert [len(lines) for lines in logged("two").values()] == [2, 3]
    assert by_image("two") == by_image("one")
    assert results("two")["metrics"] == results("one")["metrics"]
    # Each process warms up for three forwards.
    times = [results(folder)["timing"]["denoiser"] for folder in ("one", "two")]
    assert 0 < times[1]["forwards"] <= times[0]["forwards"]
    assert times[1]["rows_per_second"] > 1.2 / times[1]["seconds_per_row"]
    one, two = (np.load(f"{folder}/predictions/predictions.npz") for folder in ("one", "two"))
    for name in set(one.files) - {"seconds"}:
        np.testing.assert_array_equal(one[name], two[name])
    # One process continues what two left.
    keep("two", rank=0, lines=1)
    predict_here(*CLASSIFY, "--data.images", "5", "--output", "two")
    assert by_image("two") == by_image("one")
    assert results("two")["metrics"] == results("one")["metrics"]
    assert results("two")["timing"]["resumed_images"] == 4


@pytest.mark.slow
def test_two_processes_make_the_images_of_one():
    predict_here(*GENERATE, "--data.images", "5", "--output", "one")
    predict(*GENERATE, *TWO, "--data.images", "5", "--data.batch_size", "1", "--output", "two")
    for path in Path("one/samples").rglob("*.png"):
        assert path.read_bytes() == Path("two", path.relative_to("one")).read_bytes()
    for name, estimate in results("one")["metrics"].items():
        assert results("two")["metrics"][name]["value"] == pytest.approx(estimate["value"], rel=1e-6, abs=1e-6)


def test_a_signal_ends_a_run_at_once_and_keeps_what_is_finished():
    process = Forked("predict", *CLASSIFY, "--data.images", "500", "--data.batch_size", "1", "--output", "out")
    log = Path("out/predictions/rank-0.jsonl")
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n")):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    ended, text = process.wait()
    assert ended == 143, text
    assert "bigain: stopped by SIGTERM; runs keep what is finished, run the command again" in text
    assert len(by_image("out")) >= 1
    assert not Path("out/results.json").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_four_times_is_the_run_that_was_not():
    command = [*CLASSIFY, "--data.images", "24", "--data.batch_size", "1"]
    predict_here(*command, "--output", "whole")
    draw, done = random.Random(0), [0]
    for _ in range(4):
        process = Forked("predict", *command, "--output", "killed")
        # Most of a short run is its start: wait until images are being done.
        wanted = done[-1] + draw.randrange(1, 6)
        while process.poll() is None and len(by_image("killed")) < wanted:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, draw.choice((signal.SIGKILL, signal.SIGTERM)))
        process.wait()
        done.append(len(by_image("killed")))
    assert done == sorted(done), "a finished image was lost"
    assert any(0 < count < 24 for count in done), "no kill came in the middle"
    predict_here(*command, "--output", "killed")
    assert by_image("killed") == by_image("whole")
    whole, killed = results("whole"), results("killed")
    for content in (whole, killed):
        del content["timing"], content["evaluations"]["per_second"]
    assert killed == whole
