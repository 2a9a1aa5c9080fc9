"""Forwards of equal size, and fewer rows at a time when memory runs out."""

import pytest
import torch

from bigain.errors import InputError
from bigain.tasks.forwards import Forwards

CPU = torch.device("cpu")


def seen(forwards, count, device=CPU):
    """Row numbers of every forward; what comes out is checked to be every row once."""
    calls = []

    def compute(rows, first, last):
        calls.append(rows.tolist())
        assert (min(calls[-1]), max(calls[-1])) == (first, last)
        return rows * 10

    assert forwards.run(compute, count, device).tolist() == [10 * row for row in range(count)]
    return calls


@pytest.mark.parametrize(("rows", "count"), [(None, 5), (64, 5), (8, 5), (8, 16)])
def test_every_forward_on_a_cpu_has_the_same_size(rows, count):
    assert {len(call) for call in seen(Forwards(rows, "rows"), count)} == {8}


def test_copies_of_the_last_row_fill_the_rest_up():
    assert seen(Forwards(3, "rows"), 4) == [[0, 1, 2], [3, 3, 3]]


class Small:
    """A device with room for so many rows."""

    def __init__(self, room, error):
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, rows, first, last):
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        return rows


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")],
    ids=["accelerator", "cpu"],
)
def test_running_out_of_memory_halves_the_rows_for_good(error, caplog):
    forwards, small = Forwards(64, "rows_per_forward"), Small(2, error)
    assert forwards.run(small, 5, CPU).tolist() == [0, 1, 2, 3, 4]
    assert small.sizes == [8, 4, 2, 2, 2]
    assert "memory ran out; continues with rows_per_forward: 4 instead of 8" in caplog.text
    assert forwards.run(small, 2, CPU).tolist() == [0, 1]
    assert small.sizes[5:] == [2]


def test_not_even_one_row():
    with pytest.raises(InputError, match="memory ran out with rows_per_forward: 1; use a smaller image_size"):
        Forwards(64, "rows_per_forward").run(Small(0, torch.OutOfMemoryError("out of memory")), 5, CPU)
