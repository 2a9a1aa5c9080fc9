"""Compressors under torch.compile: one graph, the same numbers, and no stale code when hooks come or go.

The backend `eager` runs the captured graph as it is, so results must be equal bit for bit.
"""

from contextlib import ExitStack

import pytest
import torch
import torch._dynamo
from cases import CASES, METHODS, build
from models import JOINT, TODAY, forward, fresh, inputs, tiny_dit, tiny_unet

from bigain.backbones import DiT, row_keys
from bigain.backbones.compilation import compile_denoiser, compiled
from bigain.compressors import CAM, IEKVD, LGTM, ToMe, Where
from bigain.errors import InputError

HOW = ("whole", "regional")


@pytest.fixture(autouse=True)
def _forget():
    config = torch._dynamo.config
    limits = config.recompile_limit, config.accumulated_recompile_limit, config.skip_nnmodule_hook_guards
    yield
    torch.compiler.reset()
    config.recompile_limit, config.accumulated_recompile_limit, config.skip_nnmodule_hook_guards = limits


def small(network, layers=1):
    """A block of a DiT shows what five do, and compiles in a fifth of the time."""
    return tiny_unet() if network == "unet" else tiny_dit(num_layers=layers)


def compile_eagerly(model, how):
    compile_denoiser(model, how, backend="eager", fullgraph=True)


every_method = pytest.mark.parametrize("case", METHODS, ids=lambda case: case["class"].__name__)


@pytest.mark.slow
@pytest.mark.parametrize("network", [*JOINT, *TODAY])
@pytest.mark.parametrize("compressor", [LGTM(ratio=0.5), IEKVD(factor=2)])
def test_other_networks_are_one_graph(network, compressor):
    model, given = fresh(network), inputs(network)
    with compressor.applied_to(model):
        expected = forward(model, given)
        compile_eagerly(model, "whole")
        assert torch.equal(forward(model, given), expected)


@every_method
@pytest.mark.parametrize(
    ("network", "how"), [("dit", "regional"), pytest.param("unet", "whole", marks=pytest.mark.slow)]
)
def test_compiled_networks_are_one_graph_and_compute_the_same(case, network, how):
    # A cached plan is that of an earlier block.
    model, given = small(network, 2 if case["class"] is CAM else 1), inputs(network)
    with build(case).applied_to(model), row_keys(torch.tensor([3, 4, 5])):
        expected = forward(model, given)
        compile_eagerly(model, how)
        assert torch.equal(forward(model, given), expected)
        assert torch.equal(forward(model, given), expected)


def test_plans_of_other_options_compile_and_compute_the_same():
    model, given = tiny_dit(num_layers=3), inputs("dit")
    options = [case for case in CASES if {"source_quantile", "quantile_of", "aligned"} & case["kwargs"].keys()]
    with ExitStack() as installed:
        for number, case in enumerate(options):
            installed.enter_context(build(case, Where(blocks=[number])).applied_to(model))
        expected = forward(model, given)
        compile_eagerly(model, "regional")
        assert torch.equal(forward(model, given), expected)
    assert len(options) == 3


@pytest.mark.parametrize("how", HOW)
def test_keys_are_not_frozen_into_the_graph(how):
    model, given = small("dit"), inputs("dit")
    compressor, keys = ToMe(ratio=0.5), [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])]
    with compressor.applied_to(model):
        expected = []
        for key in keys:
            with row_keys(key):
                expected.append(forward(model, given))
        compile_eagerly(model, how)
        for key, value in zip(keys, expected, strict=True):
            with row_keys(key):
                assert torch.equal(forward(model, given), value)
    assert not torch.equal(*expected)


@pytest.mark.parametrize(
    ("network", "how"),
    [("dit", "whole"), ("dit", "regional"), *(pytest.param("unet", how, marks=pytest.mark.slow) for how in HOW)],
)
def test_hooks_of_a_compiled_network_come_and_go(network, how):
    model, given = small(network), inputs(network)
    plain = forward(model, given)
    with LGTM(ratio=0.5).applied_to(model):
        compressed = forward(model, given)
    compile_eagerly(model, how)
    assert compiled(model) == how
    assert torch.equal(forward(model, given), plain)
    with LGTM(ratio=0.5).applied_to(model):
        assert torch.equal(forward(model, given), compressed)
    assert torch.equal(forward(model, given), plain)
    assert not torch.equal(plain, compressed)


def test_more_blocks_than_torch_keeps_by_default():
    model, given = small("dit", 2), inputs("dit")
    torch._dynamo.config.recompile_limit = 1
    with ToMe(ratio=0.5).applied_to(model):
        expected = forward(model, given)
        compile_eagerly(model, "regional")
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            assert torch.equal(forward(model, given), expected)


def test_unknown_way():
    with pytest.raises(InputError, match="compile must be one of none, whole, regional, not 'fast'"):
        DiT("tiny", compile="fast")
