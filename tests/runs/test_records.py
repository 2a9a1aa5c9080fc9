"""Records as JSON lines, exactly."""

import json
import math
import random
import struct
import tracemalloc

import numpy as np
import pytest
from records import RECORD, read_back, record

from bigain.runs.records import ImageRecord, SampleRecord

SPECIAL = [0.0, -0.0, 1.0, 1 / 3, 0.1, 1e-45, 1.1754942e-38, 3.4028235e38, 16777217.0, math.inf, -math.inf, math.nan]


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
    again = read_back(RECORD)
    assert read_back(again) == again
    assert again.to_json() == RECORD.to_json()
    for name, value in vars(RECORD).items():
        assert np.array_equal(getattr(again, name), value) if name != "survivors" else again.survivors == value


def test_a_record_of_a_log_takes_little_memory():
    """50,000 images of ImageNet-1K have 330 million pairs of a class and a trial."""
    pairs = 10_000
    line = record(classes=[1] * pairs, trials=[400] * pairs, timesteps=[500] * pairs, errors=[0.25] * pairs).to_json()
    tracemalloc.start()
    kept = ImageRecord.from_json(line)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept.errors) == pairs
    assert taken < 20 * pairs


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
        {"classes": [0, 2, 2**31]},
        {"trials": [1, 1, 10**30]},
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
    line = SampleRecord("a", [0], "a cat", 0.5, [1.0, 2.0], {"clip_score": 25.0}).to_json()
    assert list(SampleRecord.from_json(line).features) == [1.0, 2.0]
    with pytest.raises(ValueError, match="of no use"):
        SampleRecord.from_json(json.dumps({**json.loads(line), **change}))


@pytest.mark.parametrize("kind", [ImageRecord, SampleRecord])
def test_a_line_nested_without_end_is_no_record(kind):
    with pytest.raises(ValueError, match="not a"):
        kind.from_json("[" * 100_000)
