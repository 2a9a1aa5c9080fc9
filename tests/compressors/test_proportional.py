"""Proportional attention: merged keys count as often as the tokens that they stand for; and what ToFu does by depth."""

import pytest
import torch
from models import inputs, shared, watch

from bigain.backbones.sites import layout_of
from bigain.compressors import ABM, CAM, ToFu, ToMe
from bigain.errors import InputError
from bigain.tokens.destinations import first_destinations
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import MergePlan, bipartite_matching

FIRST = {"ratio": 0.5, "destination": "first", "metric": "block_input"}


@pytest.mark.parametrize(("network", "grid"), [("unet", Grid(8, 12)), ("dit", Grid(8, 8)), ("pixart", Grid(6, 8))])
def test_attention_is_that_over_every_copy(network, grid):
    """Softmax over k keys of weight s is softmax over all n, of which s are the same."""
    model, given = shared(network), inputs(network, 2)
    block = layout_of(model).sites[0].block
    seen = {}
    for compressor in (CAM(ToMe(**FIRST, proportional=True)), ToMe(**FIRST)):
        with compressor.applied_to(model):
            seen[type(compressor)] = watch(model, given, block=block, attention=block.attn1)
    merged = seen[CAM]
    plan = bipartite_matching(merged["block"].x, first_destinations(grid, Cell(2, 2), torch.device("cpu")), grid.n // 2)
    assert merged["attention"].x.shape[1] == grid.n // 2
    expected = block.attn1(plan.unmerge(merged["attention"].x))
    torch.testing.assert_close(merged["attention"].output, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(seen[ToMe]["attention"].output, expected, atol=1e-3)


def test_padding_counts_for_no_token():
    plan = MergePlan.padded(torch.tensor([[0, 0, 2, 2, 2]]))
    assert plan.key_mask(torch.zeros(1, 5, 3), proportional=True).exp().round().tolist() == [[[2, 0, 3, 0, 0]]]


@pytest.mark.parametrize("network", ["sd3", "flux"])
def test_attention_without_a_mask_is_refused(network):
    for compressor in (ToMe(ratio=0.5, proportional=True), ABM(ratio=0.5, proportional=True)):
        with pytest.raises(
            InputError, match=r"with proportional attention weighs keys, but the attention of .* no mask"
        ):
            compressor.install(shared(network))
    with pytest.raises(InputError, match="proportional concerns self-attention"):
        ToMe(ratio=0.5, modules=["mlp"], proportional=True)


def test_tofu_prunes_early_blocks_and_keeps_norms_in_later_ones():
    model, given = shared("dit"), inputs("dit", 2)
    attentions = {str(site.index): site.block.attn1 for site in layout_of(model).sites}

    def merged(compressor):
        with compressor.applied_to(model):
            return [call.x for call in watch(model, given, **attentions).values()]

    prune, mlerp = (merged(ToMe(**FIRST, mode=mode)) for mode in ("prune", "mlerp"))
    tofu = merged(ToFu(**FIRST, prune_below=2))
    assert [torch.equal(a, b) for a, b in zip(tofu, prune, strict=True)] == [True, True, False, False, False]
    assert all(map(torch.equal, merged(ToFu(**FIRST, prune_below=0)), mlerp))
    assert all(map(torch.equal, merged(ToFu(**FIRST, prune_below=5)), prune))
