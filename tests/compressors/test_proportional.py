"""The control of `benchmarks/embedded.py`: merged tokens that count as often as they stand for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from models import inputs, shared, watch

from bigain.backbones.sites import layout_of
from bigain.compressors import ToMe
from bigain.tokens.destinations import first_destinations
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import bipartite_matching

FILE = Path(__file__).parents[2] / "benchmarks" / "controls" / "proportional.py"


@pytest.fixture(scope="module")
def proportional():
    spec = importlib.util.spec_from_file_location("proportional", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ProportionalToMe


@pytest.mark.parametrize(("network", "grid"), [("unet", Grid(8, 12)), ("dit", Grid(8, 8))])
def test_attention_is_that_over_every_copy(proportional, network, grid):
    """Softmax over k keys of weight s is softmax over all n, of which s are the same."""
    model, given = shared(network), inputs(network, 2)
    block = layout_of(model).sites[0].block
    seen = {}
    for kind in (proportional, ToMe):
        with kind(ratio=0.5, destination="first", metric="block_input").applied_to(model):
            seen[kind] = watch(model, given, block=block, attention=block.attn1)
    merged = seen[proportional]
    plan = bipartite_matching(merged["block"].x, first_destinations(grid, Cell(2, 2), torch.device("cpu")), grid.n // 2)
    assert merged["attention"].x.shape[1] == grid.n // 2
    expected = block.attn1(plan.unmerge(merged["attention"].x))
    torch.testing.assert_close(merged["attention"].output, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(seen[ToMe]["attention"].output, expected, atol=1e-3)
