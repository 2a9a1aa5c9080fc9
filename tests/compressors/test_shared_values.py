"""What rows of a forward share by timestep: compressed or not, and where forwards are cut."""

import pytest
import torch
from cases import every_architecture
from models import forward, inputs, rows, shared

from bigain.backbones import row_keys
from bigain.compressors import CAM, IEKVD, LGTM, FrequencyKV, ToDo, ToMe, base
from bigain.compressors.base import first_timesteps, installed_on, nearest_timesteps
from bigain.diffusion.schedules import Linear, Steps
from bigain.errors import InputError


@every_architecture
@pytest.mark.parametrize("kind", [lambda **more: CAM(LGTM(ratio=0.5, **more)), lambda **more: IEKVD(factor=2, **more)])
def test_a_compressor_acts_during_its_timesteps_alone(kind, network):
    model, given = shared(network), inputs(network)
    early, late = rows(given, slice(0, 2)), rows(given, slice(2, 3))
    plain = forward(model, early)
    # Timesteps of the rows: 10, 400 and 990.
    with kind(during=[400, 990]).applied_to(model):
        with pytest.raises(InputError, match="has 2 values for the timesteps of this one"):
            forward(model, early)
        compressed = forward(model, late)
        # What the caller says counts, and needs no look at the device.
        with row_keys(torch.arange(2), timestep=399):
            assert torch.equal(forward(model, early), plain)
    with kind().applied_to(model):
        assert torch.equal(forward(model, late), compressed)
    assert not torch.equal(forward(model, late), compressed)


def test_without_names_of_rows_the_timesteps_are_read_once_per_forward(monkeypatch):
    reads = []
    monkeypatch.setattr(base, "nearest_timesteps", lambda steps: [reads.append(1), *nearest_timesteps(steps)][1:])
    model, call = shared("dit"), rows(inputs("dit"), slice(0, 1))
    with ToMe(ratio=0.5, during=[0, 499]).applied_to(model):
        forward(model, call)
        forward(model, call)
    assert len(reads) == 2


def test_forwards_are_cut_where_any_compressor_changes():
    model = shared("dit")
    low, high = ToMe(ratio=0.5, during=[0, 99]), ToDo(factor=2, during=[500, 998])
    assert first_timesteps([ToMe(ratio=0.5), IEKVD(factor=2, alpha=Linear(0, 1))]) is None
    assert first_timesteps([low, high]) == [0] * 100 + [100] * 400 + [500] * 499 + [100]
    with low.applied_to(model):
        assert installed_on(model) == [low]
    with pytest.raises(InputError, match="during must be the first and the last timestep"):
        ToMe(ratio=0.5, during=[500, 1000])


@pytest.mark.parametrize(
    "make",
    [
        lambda ratio: CAM(LGTM(ratio=ratio)),
        lambda ratio: FrequencyKV(ratio=ratio, keep="low"),
        lambda ratio: ToDo(
            factor=Steps([2, 1, 4], [600, 200]) if isinstance(ratio, Steps) else {0.75: 2, 0.5: 4}[ratio]
        ),
    ],
    ids=["cam", "frequency_kv", "todo"],
)
def test_strength_follows_steps(make):
    """At timesteps 990, 400 and 10: as with the number that the schedule has there."""
    model, given = shared("dit"), inputs("dit")
    calls = [rows(given, slice(i, i + 1)) for i in (2, 1, 0)]
    with make(Steps([0.75, 0, 0.5], [600, 200])).applied_to(model):
        stepped = [forward(model, call) for call in calls]
    expected = []
    for value, call in zip((0.75, None, 0.5), calls, strict=True):
        if value is None:
            expected.append(forward(model, call))
            continue
        with make(value).applied_to(model):
            expected.append(forward(model, call))
    assert all(map(torch.equal, stepped, expected))


def test_schedules_of_strength():
    steps = Steps([0.7, 0.3, 0], [600, 200])
    assert steps(torch.tensor([999, 600, 599, 200, 199, 0])).tolist() == pytest.approx([0.7, 0.7, 0.3, 0.3, 0, 0])
    assert ToMe(ratio=steps).shared_values[::200] == (0, 0.3, 0.3, 0.7, 0.7)
    assert ToMe(ratio=steps, during=[100, 700]).shared_values[::350] == (0, 0.3, 0.7)
    assert ToDo(factor=Steps([3, 1], [500])).shared_values == (0,) * 500 + (3,) * 500
    assert ToDo(factor=2, skip_zero=True).shared_values == (0,) + (2,) * 999
    for make, message in (
        (lambda: Steps([1, 2], [0]), "falling timesteps within 1..999 and one more value, not values"),
        (lambda: Steps([1, 2, 3], [100, 200]), r"below \[100, 200\]"),
        (lambda: ToMe(ratio=Steps([0.8, 0], [500])), "at most 0.75 .* not 0.8"),
        (lambda: ToMe(ratio=Steps([0, 0], [500])), r"at most 0.75 .* not Steps\(values=\[0, 0\], below=\[500\]\)"),
        (lambda: ToDo(factor=Steps([1, 1], [500])), r"of at least 2 per side, not Steps\(values=\[1, 1\]"),
        (lambda: ToDo(factor=Steps([2.5, 1], [500])), "integer factor of at least 2 per side, not 2.5"),
        (lambda: FrequencyKV(ratio=Steps([1, 0], [500]), keep="low"), "ratio must be above 0 and below 1"),
        (lambda: ToMe(ratio=Linear(0.7, 0.1)).install(shared("dit")), "different values over the timesteps"),
    ):
        with pytest.raises(InputError, match=message):
            make()
