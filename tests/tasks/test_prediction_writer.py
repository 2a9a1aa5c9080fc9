"""Prediction logs: append-only, readable at any moment, continued after a kill."""

import os
from types import SimpleNamespace

import pytest
import torch

from bigain.callbacks import PredictionWriter
from bigain.data.class_space import ClassSpace
from bigain.runs import logs
from bigain.runs.logs import read_records
from bigain.runs.records import ImageRecord

NOTHING_FAILED = {"failed": {}}
BACKBONE = torch.nn.Identity()
BACKBONE.model, BACKBONE.load = "nothing", lambda: None
MODULE = SimpleNamespace(backbone=BACKBONE)


def record(name, error=0.1):
    return ImageRecord(name, 0, 0, [0], [0], [500], [float(torch.tensor(error))], [[0]], 0.25)


def line(name):
    return record(name).to_json() + "\n"


def trainer_of(folder, rank=0):
    data = SimpleNamespace(finished=None, class_space=ClassSpace(["a"], ["an a"], [0]))
    trainer = {"default_root_dir": str(folder), "global_rank": rank, "world_size": rank + 1}
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(**trainer, datamodule=data, strategy=strategy, is_global_zero=rank == 0)


@pytest.fixture
def writer(tmp_path):
    """Sets writers up on `tmp_path`, and closes them at the end."""
    opened = []

    def start(rank=0):
        log_writer, trainer = PredictionWriter(resume=True), trainer_of(tmp_path, rank)
        log_writer.setup(trainer, MODULE, "predict")
        opened.append(log_writer)
        return log_writer, trainer.datamodule

    yield start
    for log_writer in opened:
        log_writer.teardown(None, None, "predict")


def write(log_writer, *names):
    log_writer.on_predict_batch_end(None, None, [record(name) for name in names], NOTHING_FAILED, 0)


def log_of(folder, rank=0):
    return folder / "predictions" / f"rank-{rank}.jsonl"


def fill(folder, text, rank=0):
    path = log_of(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("rank", [0, 3])
def test_every_batch_is_on_disk_in_the_log_of_the_rank(tmp_path, writer, monkeypatch, rank):
    """Against a power cut, not only a kill."""
    log_writer, _ = writer(rank)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(log_writer, "b", "a")
    assert list(read_records(tmp_path / "predictions")) == ["b", "a"]
    write(log_writer, "c")
    assert len(synced) == 2
    assert log_of(tmp_path, rank).read_text(encoding="utf-8") == line("b") + line("a") + line("c")
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert names - {"classes.json", "model.json"} == {f"rank-{rank}.jsonl"}


@pytest.mark.parametrize("length", [0, 1, 20, len(line("torn")) - 1])
@pytest.mark.parametrize("names", [[], ["a", "b"]], ids=["no-line", "lines"])
@pytest.mark.parametrize("block", [7, 2**20])
def test_a_log_is_continued_after_its_last_complete_line(tmp_path, writer, monkeypatch, names, length, block):
    """It is found from the end, in blocks."""
    monkeypatch.setattr(logs, "_BLOCK", block)
    complete = "".join(map(line, names))
    fill(tmp_path, complete + line("torn")[:length])
    assert list(read_records(tmp_path / "predictions")) == names
    log_writer, data = writer()
    assert data.finished == {*names}
    assert log_of(tmp_path).read_bytes() == complete.encode()
    write(log_writer, "torn")
    assert log_of(tmp_path).read_bytes() == (complete + line("torn")).encode()


def test_finished_images_of_all_ranks_count(tmp_path, writer):
    """Also of ranks that the new run does not have; their logs are left alone."""
    logs = {rank: fill(tmp_path, text, rank) for rank, text in ((0, line("a")), (1, line("b") + line("c")[:9]))}
    before = logs[1].read_bytes()
    log_writer, data = writer(0)
    assert data.finished == {"a", "b"}
    write(log_writer, "c")
    assert logs[1].read_bytes() == before
    assert set(read_records(tmp_path / "predictions")) == {"a", "b", "c"}


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path, writer):
    fill(tmp_path, line("a") + line("b")[:20] + "\n" + line("c"))
    with pytest.raises(ValueError, match="not a prediction record"):
        writer()
