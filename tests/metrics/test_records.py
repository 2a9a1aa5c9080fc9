"""Records as JSON lines, exactly, and as columns."""

import json
import math
import random
import struct

import numpy as np
import pytest

from bigain.metrics.records import ImageRecord, SampleRecord, to_columns

RECORD = ImageRecord(
    image_id="images/pug_3.jpg",
    label=25,
    prediction=2,
    classes=[0, 2, 2],
    trials=[1, 1, 0],
    timesteps=[750, 750, 250],
    errors=[0.5, 0.25, 0.75],
    survivors=[[0, 2], [2]],
    seconds=1.5,
)
SPECIAL = [0.0, -0.0, 1.0, 1 / 3, 0.1, 1e-45, 1.1754942e-38, 3.4028235e38, 16777217.0, math.inf, -math.inf, math.nan]


def record(image_id="a", classes=(), trials=(), timesteps=(), errors=(), survivors=(), label=0, prediction=0):
    return ImageRecord(image_id, label, prediction, classes, trials, timesteps, errors, survivors, 0.5)


def read_back(value):
    return ImageRecord.from_json(value.to_json())


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).tolist()


def test_the_line_is_what_the_format_says():
    """Users script against these keys."""
    assert json.loads(RECORD.to_json()) == {
        "image_id": "images/pug_3.jpg",
        "label": 25,
        "prediction": 2,
        "classes": [0, 2, 2],
        "trials": [1, 1, 0],
        "timesteps": [750, 750, 250],
        "errors": [0.5, 0.25, 0.75],
        "survivors": [[0, 2], [2]],
        "seconds": 1.5,
    }


def test_round_trip():
    assert read_back(RECORD) == RECORD


@pytest.mark.parametrize("value", SPECIAL, ids=str)
def test_special_errors_come_back_bit_for_bit(value):
    (error,) = read_back(record(classes=[0], trials=[0], timesteps=[9], errors=[float(np.float32(value))])).errors
    assert bits([error]) == bits([value])


def test_random_floats_come_back_bit_for_bit():
    """Any finite float32, also subnormal ones."""
    draw = random.Random(0)
    patterns = [draw.getrandbits(32) for _ in range(20_000)]
    values = [struct.unpack("f", struct.pack("I", pattern))[0] for pattern in patterns]
    values = [value for value in values if math.isfinite(value)]
    zeros = [0] * len(values)
    assert bits(read_back(record(classes=zeros, trials=zeros, timesteps=zeros, errors=values)).errors) == bits(values)


def test_errors_take_few_digits():
    line = record(errors=np.array([0.1, 1 / 3], np.float32).tolist()).to_json()
    assert '"errors": [0.1, 0.33333334]' in line


def test_seconds_keep_double_precision():
    value = ImageRecord("a", 0, 0, [], [], [], [], [], 0.1 + 0.2)
    assert read_back(value).seconds == 0.1 + 0.2


@pytest.mark.parametrize("image_id", ["a\nb", "a\r\nb", "a\u2028b\x85", 'quo"te\\', "größe/猫.jpg", " ", ""])
def test_any_id_stays_on_one_line(image_id):
    line = record(image_id).to_json()
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert ImageRecord.from_json(line + "\n").image_id == image_id


def test_every_torn_line_is_an_error():
    line = RECORD.to_json()
    for end in range(len(line)):
        with pytest.raises(ValueError, match="not a prediction record"):
            ImageRecord.from_json(line[:end])


@pytest.mark.parametrize("line", ["3", "null", "[]", "[1]", '"text"', "{}", '{"label": 1}', "\x00\x00", "nonsense"])
def test_other_lines_are_errors(line):
    with pytest.raises(ValueError, match="not a prediction record") as caught:
        ImageRecord.from_json(line)
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("name", vars(RECORD))
def test_a_missing_field_is_an_error(name):
    fields = json.loads(RECORD.to_json())
    del fields[name]
    with pytest.raises(ValueError, match="not a prediction record"):
        ImageRecord.from_json(json.dumps(fields))


def test_an_unknown_field_is_an_error():
    with pytest.raises(ValueError, match="not a prediction record"):
        ImageRecord.from_json(json.dumps({**vars(RECORD), "colour": 1}))


def test_a_long_line_is_shortened_in_the_message():
    with pytest.raises(ValueError, match="not a prediction record") as caught:
        ImageRecord.from_json("x" * 10_000)
    assert len(str(caught.value)) < 200


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


def test_columns_equal_a_loop():
    draw = random.Random(0)
    records = [random_record(draw, f"n/{i}", 6, trials) for i, trials in enumerate((4, 2, 5, 1))]
    columns = to_columns(records, 6)
    assert columns["errors"].shape == (4, 6, 5)
    assert columns["timesteps"].shape == (4, 5)
    assert columns["stage"].shape == (4, 6)
    for i, one in enumerate(records):
        pairs = list(zip(one.classes, one.trials, strict=True))
        errors, times = dict(zip(pairs, one.errors, strict=True)), dict(zip(one.trials, one.timesteps, strict=True))
        for k in range(6):
            assert columns["stage"][i, k] == sum(k in alive for alive in one.survivors)
            for j in range(5):
                expected = np.float32(errors.get((k, j), math.nan))
                assert np.array_equal(columns["errors"][i, k, j], expected, equal_nan=True)
        assert columns["timesteps"][i].tolist() == [times.get(j, -1) for j in range(5)]
        for name in ("image_id", "label", "prediction", "seconds"):
            assert columns[name][i] == getattr(one, name)


def test_column_types():
    kinds = {name: column.dtype for name, column in to_columns([RECORD], 37).items()}
    assert kinds.pop("image_id").kind == "U"
    assert kinds == {
        "label": np.int64,
        "prediction": np.int64,
        "seconds": np.float64,
        "errors": np.float32,
        "timesteps": np.int16,
        "stage": np.int16,
    }


def test_nan_where_a_pair_was_not_evaluated():
    errors = to_columns([RECORD], 3)["errors"][0]
    assert np.array_equal(errors, np.float32([[math.nan, 0.5], [math.nan] * 2, [0.75, 0.25]]), equal_nan=True)


def test_columns_do_not_change_on_the_way_through_a_log():
    draw = random.Random(1)
    records = [random_record(draw, f"n/{i}", 5, 4) for i in range(3)]
    one, two = to_columns(records, 5), to_columns([read_back(value) for value in records], 5)
    assert all(np.array_equal(one[name], two[name], equal_nan=name == "errors") for name in one)


@pytest.mark.parametrize("records", [[], [record("a"), record("b")]], ids=["no-image", "no-trial"])
def test_columns_of_nothing(records):
    columns = to_columns(records, 3)
    assert columns["errors"].shape == (len(records), 3, 1)
    assert np.isnan(columns["errors"]).all()
    assert (columns["timesteps"] == -1).all()
    assert columns["image_id"].tolist() == [value.image_id for value in records]


def test_columns_are_stored_without_pickle(tmp_path):
    columns = to_columns([RECORD, record("longer/than/the/others/größe.jpg")], 37)
    np.savez_compressed(tmp_path / "predictions.npz", **columns)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as stored:
        assert set(stored) == set(columns)
        assert all(np.array_equal(stored[name], columns[name], equal_nan=name == "errors") for name in columns)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": []},
        {"label": "a"},
        {"label": True},
        {"prediction": -1},
        {"prediction": 0.5},
        {"classes": [0, 2]},
        {"trials": [1, 1, None]},
        {"timesteps": [750, 750, 10**30]},
        {"errors": [0.5, 0.25, "x"]},
        {"errors": [0.5, 0.25, 10**400]},
        {"survivors": [2]},
        {"survivors": None},
        {"seconds": math.nan},
        {"seconds": 10**400},
    ],
    ids=str,
)
def test_a_record_with_a_field_of_another_kind_is_none(change):
    with pytest.raises(ValueError, match="of no use"):
        ImageRecord.from_json(json.dumps({**json.loads(RECORD.to_json()), **change}))


@pytest.mark.parametrize("change", [{"labels": 0}, {"prompt": None}, {"seconds": "x"}, {"clip_score": []}], ids=str)
def test_a_sample_record_with_a_field_of_another_kind_is_none(change):
    line = SampleRecord("a", [0], "a cat", 0.5, [1.0, 2.0], 25.0).to_json()
    assert list(SampleRecord.from_json(line).features) == [1.0, 2.0]
    with pytest.raises(ValueError, match="of no use"):
        SampleRecord.from_json(json.dumps({**json.loads(line), **change}))


@pytest.mark.parametrize("kind", [ImageRecord, SampleRecord])
def test_a_line_nested_without_end_is_no_record(kind):
    with pytest.raises(ValueError, match="not a"):
        kind.from_json("[" * 100_000)
