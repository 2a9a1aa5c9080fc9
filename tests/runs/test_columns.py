"""Records as arrays, in the file of a run."""

import math
import random
import tracemalloc
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
from records import read_back, record

from bigain.runs import columns
from bigain.runs.columns import column_blocks, read_columns, write_columns
from bigain.runs.logs import read_records
from bigain.runs.records import ImageRecord


def random_record(draw, name, classes, trials):
    """Trials are shared by the classes that are still alive."""
    alive, pairs, survivors = list(range(classes)), [], []
    timestep = [draw.randrange(1000) for _ in range(trials)]
    for j in range(trials):
        pairs += [(k, j) for k in alive]
        if j % 2:
            alive = sorted(draw.sample(alive, max(1, len(alive) // 2)))
            survivors.append(alive)
    return ImageRecord(
        image_id=name,
        label=draw.randrange(classes),
        prediction=draw.randrange(classes),
        classes=[k for k, _ in pairs],
        trials=[j for _, j in pairs],
        timesteps=[timestep[j] for _, j in pairs],
        errors=[draw.random() for _ in pairs],
        survivors=survivors,
        seconds=draw.random(),
    )


@pytest.fixture
def to_columns(tmp_path):
    """What is in the file: columns of records and a number of classes."""

    def written(records, classes):
        write_columns(tmp_path, records, classes)
        with np.load(tmp_path / "predictions/predictions.npz", allow_pickle=False) as stored:
            return dict(stored)

    return written


def test_columns_equal_a_loop(to_columns):
    draw = random.Random(0)
    records = [random_record(draw, f"n/{i}", 6, trials) for i, trials in enumerate((4, 2, 5, 1))]
    written = to_columns([read_back(value) for value in records], 6)
    assert {name: (column.shape, column.dtype.str[1:]) for name, column in written.items()} == {
        "image_id": ((4,), "U3"),
        **dict.fromkeys(("label", "prediction"), ((4,), "i8")),
        "seconds": ((4,), "f8"),
        "errors": ((4, 6, 5), "f4"),
        "timesteps": ((4, 5), "i2"),
        "stage": ((4, 6), "i2"),
    }
    for i, one in enumerate(records):
        pairs = list(zip(one.classes, one.trials, strict=True))
        errors, times = dict(zip(pairs, one.errors, strict=True)), dict(zip(one.trials, one.timesteps, strict=True))
        for k in range(6):
            assert written["stage"][i, k] == sum(k in alive for alive in one.survivors)
            for j in range(5):
                expected = np.float32(errors.get((k, j), math.nan))
                assert np.array_equal(written["errors"][i, k, j], expected, equal_nan=True)
        assert written["timesteps"][i].tolist() == [times.get(j, -1) for j in range(5)]
        for name in ("image_id", "label", "prediction", "seconds"):
            assert written[name][i] == getattr(one, name)


def test_parts_of_the_errors_are_a_column_of_their_own(to_columns):
    draw, make = random.Random(1), np.random.default_rng(1)
    records = [random_record(draw, f"n/{i}", 4, 3) for i in range(2)]
    for one in records:
        one.bands = make.random((len(one.errors), 5)).astype(np.float32).tolist()
    written = to_columns([read_back(value) for value in records], 4)
    assert written["bands"].shape == (2, 4, 3, 5)
    for i, one in enumerate(records):
        np.testing.assert_array_equal(written["bands"][i, one.classes, one.trials], np.float32(one.bands))
    assert np.array_equal(np.isnan(written["bands"]).all(3), np.isnan(written["errors"]))
    plain = to_columns([replace(one, bands=()) for one in records], 4)
    assert all(np.array_equal(plain[name], written[name], equal_nan=plain[name].dtype.kind == "f") for name in plain)


def test_neither_the_log_nor_the_errors_are_in_memory_together(tmp_path, monkeypatch):
    """They would be 5 and 20 GB for 50,000 images of ImageNet-1K; here the errors are 16 MB."""
    pairs = {"classes": [0, 999] * 1_000, "trials": [0, 99] * 1_000, "timesteps": [1, 2] * 1_000}
    line = record("n/0", **pairs, errors=[0.5, 1.0] * 1_000, survivors=[[0, 999], [999]]).to_json()
    (tmp_path / "predictions").mkdir()
    log = [line.replace("n/0", f"n/{i}") + "\n" for i in range(40)]
    (tmp_path / "predictions/rank-0.jsonl").write_text("".join(log))
    tracemalloc.start()
    records = [*read_records(tmp_path / "predictions").values()]
    held, _ = tracemalloc.get_traced_memory()
    write_columns(tmp_path, records, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1e5
    assert peak < 6e6
    assert [one.to_json() + "\n" for one in records] == log
    # Whatever the time.
    assert {info.date_time for info in ZipFile(tmp_path / "predictions/predictions.npz").infolist()} == {
        (1980, 1, 1, 0, 0, 0)
    }
    (errors,) = read_columns(tmp_path, "errors")
    monkeypatch.setattr(columns, "_BLOCK", 300_000)
    blocks = [*column_blocks(tmp_path, "errors")]
    assert {len(block) for block in blocks} == {3, 1}
    assert np.array_equal(np.concatenate(blocks), errors, equal_nan=True)
