"""Prediction logs: append-only, readable at any moment, continued after a kill."""

import os
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from bigain.callbacks import PredictionWriter
from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace
from bigain.data.selection import Item
from bigain.runs.logs import read_records
from bigain.runs.records import ImageRecord

NOTHING_FAILED = {"failed": {}}
BACKBONE = torch.nn.Identity()
BACKBONE.model, BACKBONE.load = "nothing", lambda: None
MODULE = SimpleNamespace(backbone=BACKBONE)
IDS = [f"n/{i}" for i in range(6)]
# Lightning counts cores and devices and recommends; neither is about these tests.
quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")


class Numbers(EvalDataModule):
    name = "Numbers"

    def __init__(self):
        super().__init__(image_size=1, batch_size=2, num_workers=0)

    @property
    def class_space(self):
        return ClassSpace(["a"], ["an a"], [0])

    def find_items(self):
        return [Item(name, (0,)) for name in IDS]

    def read_bytes(self, item):
        return item.image_id.encode()

    def read_image(self, item):
        return torch.zeros(3, 1, 1, dtype=torch.uint8)


class Answer(LightningModule):
    """Answers at once; fails in the batch that holds `fail_at`."""

    def __init__(self, fail_at=None, error=RuntimeError):
        super().__init__()
        self.backbone = BACKBONE
        self.fail_at, self.error = fail_at, error
        self.answered = []

    def predict_step(self, batch, batch_idx):
        if self.fail_at in batch["image_id"]:
            raise self.error("the power went")
        self.answered += batch["image_id"]
        return [record(name) for name in batch["image_id"]]


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
        one, trainer = PredictionWriter(resume=True), trainer_of(tmp_path, rank)
        one.setup(trainer, MODULE, "predict")
        opened.append(one)
        return one, trainer.datamodule

    yield start
    for one in opened:
        one.teardown(None, None, "predict")


def write(one, *names):
    one.on_predict_batch_end(None, None, [record(name) for name in names], NOTHING_FAILED, 0)


def log_of(folder, rank=0):
    return folder / "predictions" / f"rank-{rank}.jsonl"


def fill(folder, text, rank=0):
    path = log_of(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def run(folder, module):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PredictionWriter(resume=True)],
    )
    trainer.predict(module, datamodule=Numbers(), return_predictions=False)
    return module


@pytest.mark.parametrize("rank", [0, 3])
def test_one_line_per_image_in_the_log_of_the_rank(tmp_path, writer, rank):
    one, _ = writer(rank)
    write(one, "b", "a")
    write(one, "c")
    assert log_of(tmp_path, rank).read_text(encoding="utf-8") == line("b") + line("a") + line("c")
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert names - {"classes.json", "model.json"} == {f"rank-{rank}.jsonl"}


def test_lines_are_on_disk_after_every_batch(tmp_path, writer):
    """The log is still open: what a kill would leave."""
    one, _ = writer()
    for i, name in enumerate(IDS):
        write(one, name)
        assert list(read_records(tmp_path / "predictions")) == IDS[: i + 1]


def test_every_batch_is_synced(writer, monkeypatch):
    """Against a power cut, not only a kill."""
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    one, _ = writer()
    synced.clear()
    write(one, "a")
    write(one, "b", "c")
    assert len(synced) == 2


def test_a_log_is_continued_and_never_rewritten(tmp_path, writer):
    before = fill(tmp_path, line("a") + line("b")).read_bytes()
    one, data = writer()
    assert data.finished == {"a", "b"}
    write(one, "c")
    assert log_of(tmp_path).read_bytes() == before + line("c").encode()


@pytest.mark.parametrize("length", [1, 20, len(line("torn")) - 1], ids=["one", "some", "all-but-the-end"])
@pytest.mark.parametrize("names", [[], ["a", "b"]], ids=["no-line", "lines"])
def test_an_incomplete_last_line_is_dropped(tmp_path, writer, names, length):
    complete = "".join(map(line, names))
    fill(tmp_path, complete + line("torn")[:length])
    assert list(read_records(tmp_path / "predictions")) == names
    one, data = writer()
    assert data.finished == {*names}
    assert log_of(tmp_path).read_bytes() == complete.encode()
    write(one, "torn")
    assert log_of(tmp_path).read_bytes() == (complete + line("torn")).encode()


def test_finished_images_of_all_ranks_count(tmp_path, writer):
    """Also of ranks that the new run does not have; their logs are left alone."""
    logs = {rank: fill(tmp_path, text, rank) for rank, text in ((0, line("a")), (1, line("b") + line("c")[:9]))}
    before = logs[1].read_bytes()
    one, data = writer(0)
    assert data.finished == {"a", "b"}
    write(one, "c")
    assert logs[1].read_bytes() == before
    assert set(read_records(tmp_path / "predictions")) == {"a", "b", "c"}


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path, writer):
    fill(tmp_path, line("a") + line("b")[:20] + "\n" + line("c"))
    with pytest.raises(ValueError, match="not a prediction record"):
        writer()


@quiet
def test_a_failed_run_stays_readable_and_is_continued(tmp_path):
    with pytest.raises(RuntimeError, match="the power went"):
        run(tmp_path, Answer(fail_at="n/4"))
    assert list(read_records(tmp_path / "predictions")) == IDS[:4]
    before = log_of(tmp_path).read_bytes()
    again = run(tmp_path, Answer())
    assert again.trainer.datamodule.finished == set(IDS[:4])
    assert again.answered == IDS[4:]
    assert log_of(tmp_path).read_bytes() == before + (line("n/4") + line("n/5")).encode()
    assert run(tmp_path, Answer()).answered == []
