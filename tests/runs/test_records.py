"""Records as JSON lines, exactly."""

import json
import math
import random
import struct

import numpy as np
import pytest
from records import RECORD, read_back, record

from bigain.runs.records import FeatureRecord, ImageRecord, SampleRecord

SAMPLE = SampleRecord("a", [0], "a cat", 0.5, np.float32([1.0, 2.0]), {"clip_score": 25.0})
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
        "digest": None,
    }


def test_round_trip():
    assert read_back(RECORD).to_json() == RECORD.to_json()
    sample = SampleRecord.from_json(SAMPLE.to_json())
    assert list(sample.features) == [1.0, 2.0]
    assert sample.to_json() == SAMPLE.to_json()


def test_floats_come_back_bit_for_bit_in_few_digits():
    """Any float32, also subnormal ones; seconds in double precision."""
    draw = random.Random(0)
    values = [struct.unpack("f", struct.pack("I", draw.getrandbits(32)))[0] for _ in range(20_000)]
    values = [float(np.float32(value)) for value in SPECIAL] + [value for value in values if math.isfinite(value)]
    zeros = [0] * len(values)
    assert bits(read_back(record(classes=zeros, trials=zeros, timesteps=zeros, errors=values)).errors) == bits(values)
    assert '"errors": [0.1, 0.33333334]' in record(errors=np.array([0.1, 1 / 3], np.float32).tolist()).to_json()
    assert read_back(ImageRecord("a", 0, 0, [], [], [], [], [], 0.1 + 0.2)).seconds == 0.1 + 0.2


@pytest.mark.parametrize("image_id", ["a\nb", "a\r\nb", "a\u2028b\x85", 'quo"te\\', "größe/猫.jpg", " ", ""])
def test_any_id_stays_on_one_line(image_id):
    line = record(image_id).to_json()
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert ImageRecord.from_json(line + "\n").image_id == image_id


@pytest.mark.parametrize("line", ["null", "[1]", '"text"', "{}", RECORD.to_json()[:-9], "[" * 100_000, "x" * 10_000])
@pytest.mark.parametrize("kind", [ImageRecord, SampleRecord, FeatureRecord])
def test_other_lines_are_errors(kind, line):
    with pytest.raises(ValueError, match=r"not a .* record: ") as caught:
        kind.from_json(line)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change", [{"timesteps": [750, 750, 10**30]}, {"errors": [0.5, 0.25, "x"]}, {"colour": 1}], ids=str
)
def test_a_field_that_cannot_be_stored_is_an_error(change):
    with pytest.raises(ValueError, match=r"not a prediction record"):
        ImageRecord.from_json(json.dumps({**json.loads(RECORD.to_json()), **change}))
