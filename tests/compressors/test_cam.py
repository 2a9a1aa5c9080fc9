"""CAM: one plan per stage and forward."""

import pytest
import torch
from cases import every_network
from models import forward, inputs, shared

from bigain.compressors import CAM, LGTM, ToDo, ToMA, ToMe, Where
from bigain.errors import InputError


@pytest.fixture
def planned(monkeypatch):
    """Which sites a merger plans at, and the plans."""

    def spy(merger):
        calls = []

        def plan(x, site, context):
            made = type(merger).plan(merger, x, site, context)
            calls.append((site.index, made))
            return made

        monkeypatch.setattr(merger, "plan", plan)
        return calls

    return spy


STAGES = [
    pytest.param("unet", Where(), [0, 5], id="unet-stride-1"),
    # Down at 1 and 2, mid, up at 2 and 1.
    pytest.param("unet", Where(max_stride=4), [0, 1, 2, 3, 5], id="unet-all"),
    pytest.param("unet", Where(min_stride=2, max_stride=2, part="up"), [3], id="unet-up-2"),
    pytest.param("dit", Where(), [0], id="dit-all"),
    pytest.param("dit", Where(blocks=[1, 3]), [1], id="dit-two"),
]


@pytest.mark.parametrize("kind", [LGTM, ToMA])
@pytest.mark.parametrize(("network", "where", "sites"), STAGES)
def test_plans_once_per_stage_and_forward(network, where, sites, kind, planned):
    model = shared(network)
    merger = kind(ratio=0.5, where=where)
    cam = CAM(merger) if kind is LGTM else merger
    calls = planned(merger)
    with cam.applied_to(model):
        forward(model, inputs(network))
        assert [index for index, _ in calls] == sites
        forward(model, inputs(network))
        assert [index for index, _ in calls] == sites * 2


@every_network
def test_later_sites_use_the_plan_of_the_first(network, planned):
    """The formula with the first plan at every site, through a merger with given plans."""
    model, given = shared(network), inputs(network)
    cam = CAM(LGTM(ratio=0.5))
    calls = planned(cam.inner)
    with cam.applied_to(model):
        output = forward(model, given)
    plans = dict(calls)
    merger = LGTM(ratio=0.5)
    merger.plan = lambda x, site, context: plans[max(index for index in plans if index <= site.index)]
    with merger.applied_to(model):
        assert torch.equal(forward(model, given), output)
    with LGTM(ratio=0.5).applied_to(model):
        assert not torch.allclose(forward(model, given), output, atol=1e-4)


def test_takes_its_settings_from_the_inner_method():
    inner = ToMe(ratio=0.5, where=Where(part="up"), modules=["mlp"], metric="attn_input", seed=3)
    cam = CAM(inner)
    assert (cam.where, cam.modules, cam.metric) == (inner.where, inner.modules, inner.metric)
    model, given = shared("unet"), inputs("unet")
    outputs = []
    for seed in (3, 4):
        with CAM(ToMe(ratio=0.5, seed=seed)).applied_to(model):
            outputs.append(forward(model, given))
    assert not torch.equal(*outputs)


def test_only_mergers_can_be_cached():
    with pytest.raises(InputError, match=r"merger.*not of ToDo"):
        CAM(ToDo(factor=2))
