"""Prediction logs: append-only, readable at any moment, continued after a kill."""

import os
from types import SimpleNamespace

import pytest
import torch

from bigain.callbacks import PredictionWriter
from bigain.data.base import digest_of
from bigain.data.class_space import ClassSpace
from bigain.data.selection import Item
from bigain.errors import InputError
from bigain.runs.files import write_text
from bigain.runs.logs import read_records
from bigain.runs.records import ImageRecord
from bigain.tasks.forwards import Forwards
from bigain.tasks.prediction_writer import read_sessions

NOTHING_FAILED = {"failed": {}}
BACKBONE = torch.nn.Identity()
BACKBONE.model, BACKBONE.load = "nothing", lambda: None
MODULE = SimpleNamespace(backbone=BACKBONE, forwards=Forwards(64, "rows_per_forward"))
ITEMS = [Item(name, (0,)) for name in ("a", "b", "c", "torn")]


def record(name, error=0.1):
    return ImageRecord(name, 0, 0, [0], [0], [500], [float(torch.tensor(error))], [[0]], 0.25, digest_of(name.encode()))


def line(name):
    return record(name).to_json() + "\n"


def trainer_of(folder, rank=0):
    data = SimpleNamespace(finished=None, class_space=ClassSpace(["a"], ["an a"], [0]), items=ITEMS)
    data.read_bytes, data.where = lambda item: item.image_id.encode(), lambda item: f"{item.image_id}.jpg"
    trainer = {"default_root_dir": str(folder), "global_rank": rank, "world_size": rank + 1}
    strategy = SimpleNamespace(broadcast=lambda value: value, root_device=torch.device("cpu"))
    return SimpleNamespace(**trainer, datamodule=data, strategy=strategy, is_global_zero=rank == 0)


@pytest.fixture
def writer(tmp_path):
    """Sets writers up on `tmp_path`, and closes them at the end."""
    opened = []

    def start(rank=0, **changes):
        log_writer, trainer = PredictionWriter(resume=True), trainer_of(tmp_path, rank)
        vars(trainer.datamodule).update(changes)
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
    write_text(path, text)
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
    assert names - {"classes.json", "model.json", "sessions.json"} == {f"rank-{rank}.jsonl"}


@pytest.mark.parametrize("length", [0, 1, 20, len(line("torn")) - 1])
@pytest.mark.parametrize("names", [[], ["a", "b"]], ids=["no-line", "lines"])
def test_a_log_is_continued_after_its_last_complete_line(tmp_path, writer, names, length):
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


def test_an_image_that_was_replaced_is_refused_and_one_that_is_gone_or_unknown_is_not(tmp_path, writer):
    def gone(item):
        raise InputError("image a.jpg cannot be read")

    old = line("b").replace(digest_of(b"b"), "null").replace('"null"', "null")
    fill(tmp_path, line("a") + old)
    writer(read_bytes=gone)
    writer(read_bytes=lambda item: b"a")
    with pytest.raises(InputError, match=r"a\.jpg was replaced by another image since it was evaluated"):
        writer(read_bytes=lambda item: b"b")


def test_what_changed_since_the_last_session_is_reported_and_recorded(tmp_path, writer, monkeypatch, caplog):
    for threads, before in ((2, 0), (2, 0), (3, 0), (3, 0), (4, 3), (4, 0), (3, 4), (3, 0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        log_writer, _ = writer()
        warned = f"warning: continues with cpu_threads {before} -> {threads}; last digits" in caplog.text
        assert warned == ("warning" in caplog.text) == bool(before)
        caplog.clear()
        if threads == 3 and not before:
            write(log_writer, "a")
        log_writer.teardown(None, None, "predict")
    sessions = read_sessions(tmp_path / "predictions")
    # Those before the first image do not count.
    assert [session["cpu_threads"] for session in sessions] == [4, 3]
    assert {session["rows_per_forward"] for session in sessions} == {8}
    monkeypatch.setenv("BIGAIN_KERNELS", "torch")
    writer()
    assert "warning: continues with kernels auto -> torch; last digits" in caplog.text
