"""What rows of a forward share by timestep: compressed or not, and where forwards are cut."""

import pytest
import torch
from cases import every_architecture
from models import forward, inputs, rows, shared

from bigain.backbones import row_keys
from bigain.compressors import CAM, IEKVD, LGTM, ToDo, ToMe
from bigain.compressors.base import first_timesteps, installed_on
from bigain.diffusion.schedules import Linear
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


def test_forwards_are_cut_where_any_compressor_changes():
    model = shared("dit")
    low, high = ToMe(ratio=0.5, during=[0, 99]), ToDo(factor=2, during=[500, 998])
    assert first_timesteps([ToMe(ratio=0.5), IEKVD(factor=2, alpha=Linear(0, 1))]) is None
    assert first_timesteps([low, high]) == [0] * 100 + [100] * 400 + [500] * 499 + [100]
    with low.applied_to(model):
        assert installed_on(model) == [low]
    with pytest.raises(InputError, match="during must be the first and the last timestep"):
        ToMe(ratio=0.5, during=[500, 1000])
