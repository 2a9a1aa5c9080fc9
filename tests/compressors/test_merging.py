"""The merge family is `x + unmerge(attn(merge(norm(x))))`, written out here with matrices."""

import pytest
import torch
from cases import ALL_MODULES, every_network
from models import forward, fresh, inputs, rows, shared, watch

from bigain.backbones import row_keys
from bigain.backbones.sites import layout_of
from bigain.compressors import ABM, LGTM, CoReDiT, SiTo, ToMA, ToMe, Where
from bigain.tokens.block_merging import block_merging
from bigain.tokens.destinations import (
    cell_destinations,
    first_destinations,
    random_destinations,
    released_destinations,
)
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import MergePlan, bipartite_matching
from bigain.tokens.randomness import mix
from bigain.tokens.scores import l2_norm, laplacian_l1
from bigain.tokens.similarity_pruning import similarity_pruning

CELL = Cell(2, 2)
CPU = torch.device("cpu")
KEYS = torch.tensor([3, 4])
SITES = {"unet": 6, "dit": 3}  # late ones, behind other compressed sites
GRIDS = {"unet": Grid(8, 12), "dit": Grid(8, 8)}


def matching(destination, mode="mean"):
    def plan(x, grid, site):
        return bipartite_matching(x, destination(x, grid, site), grid.n // 2, mode)

    return plan


def first(x, grid, site):
    return first_destinations(grid, CELL, CPU)


def random(x, grid, site):
    return random_destinations(mix(KEYS, 5, site), grid, CELL)


# Arguments of a compressor, and the plan that they should give.
PLANS = [
    pytest.param(ToMe, {"destination": "first"}, matching(first), id="ToMe-first"),
    pytest.param(ToMe, {"destination": "first", "mode": "prune"}, matching(first, "prune"), id="ToMe-prune"),
    pytest.param(ToMe, {"seed": 5}, matching(random), id="ToMe-random"),
    pytest.param(
        LGTM, {}, matching(lambda x, grid, _: cell_destinations(laplacian_l1(x, grid), grid, CELL)), id="LGTM-cell"
    ),
    pytest.param(
        LGTM,
        {"destination": "released", "score": l2_norm},
        matching(lambda x, grid, _: released_destinations(l2_norm(x, grid), grid, CELL)),
        id="LGTM-released",
    ),
    pytest.param(
        LGTM,
        {"score": l2_norm, "source_quantile": 0.7},
        lambda x, grid, _: bipartite_matching(
            x,
            cell_destinations(l2_norm(x, grid), grid, CELL),
            grid.n // 2,
            gate=(l2_norm(x, grid), int(0.7 * grid.n * 3 / 4)),
        ),
        id="LGTM-gate",
    ),
    pytest.param(
        ABM, {}, lambda x, grid, _: block_merging(laplacian_l1(x, grid), grid, CELL, grid.n // 6, "max"), id="ABM"
    ),
    pytest.param(
        SiTo,
        {"noise_alpha": 0.0},
        lambda x, grid, _: similarity_pruning(x, torch.zeros(2, grid.n), grid, CELL, grid.n // 2, 0.0, 1.0),
        id="SiTo",
    ),
]


def matrices(plan):
    """**M** and **U** of Eq. 6. `(b, k, n)`, `(b, n, k)`."""
    unmerge = torch.nn.functional.one_hot(plan.restore, plan.kept.shape[1]).float()
    if plan.mode == "prune":
        return torch.nn.functional.one_hot(plan.kept, plan.restore.shape[1]).float(), unmerge
    merge = unmerge.transpose(1, 2)
    return merge / merge.sum(2, keepdim=True), unmerge


def block_by_hand(network, block, x, given, planner, metric, modules):
    """A forward of one block on its own input."""
    if network == "dit":
        modulated = block.norm1(x, given["timestep"], given["class_labels"], hidden_dtype=x.dtype)
        attn_input, gate, shift, scale, gate_mlp = (part.view(len(x), -1, x.shape[2]) for part in modulated)
    else:
        attn_input = block.norm1(x)
    merge, unmerge = matrices(planner(attn_input if metric == "attn_input" else x))

    def around(name, module, tokens, *states):
        return unmerge @ module(merge @ tokens, *states) if name in modules else module(tokens, *states)

    if network == "dit":
        x = x + gate * around("self_attn", block.attn1, attn_input)
        return x + gate_mlp * around("mlp", block.ff, block.norm3(x) * (1 + scale) + shift)
    x = x + around("self_attn", block.attn1, attn_input)
    x = x + around("cross_attn", block.attn2, block.norm2(x), given["encoder_hidden_states"])
    return x + around("mlp", block.ff, block.norm3(x))


@every_network
@pytest.mark.parametrize("metric", ["block_input", "attn_input", None])
@pytest.mark.parametrize(("kind", "kwargs", "planner"), PLANS)
def test_equals_the_formula(network, metric, kind, kwargs, planner):
    model, given, index, grid = shared(network), inputs(network, 2), SITES[network], GRIDS[network]
    # Alternate between the default, Table 6 and the parts in between.
    modules = {"block_input": ["self_attn"], "attn_input": ["mlp", "self_attn"], None: ALL_MODULES}[metric]
    modules = [name for name in modules if network == "unet" or name != "cross_attn"]
    block = layout_of(model).sites[index].block
    compressor = kind(ratio=0.5, modules=modules, metric=metric, **kwargs)
    with compressor.applied_to(model), row_keys(KEYS):
        seen = watch(model, given, block=block)["block"]
    default = {"unet": "block_input", "dit": "attn_input"}[network]
    expected = block_by_hand(
        network, block, seen.x, given, lambda x: planner(x, grid, index), metric or default, modules
    )
    torch.testing.assert_close(seen.output, expected, atol=2e-5, rtol=0)


@every_network
def test_a_padded_sequence_is_the_short_one_of_each_row(network):
    """Every row by itself, with the tokens that its cells really leave: keys are masked, not only zero."""
    model, given, index, grid = shared(network), inputs(network, 3), SITES[network], GRIDS[network]
    block, lengths = layout_of(model).sites[index].block, set()

    def shortened(x):
        score, leader = laplacian_l1(x, grid)[0], list(range(grid.n))
        low = sorted(range(grid.n), key=lambda t: (score[t].item(), t))[: int(0.8 * grid.n)]
        for first in (y * grid.w + x for y in range(0, grid.h, 2) for x in range(0, grid.w, 2)):
            cell = [first, first + 1, first + grid.w, first + grid.w + 1]
            if set(cell) <= set(low):
                leader[first + 1] = leader[first + grid.w] = leader[first + grid.w + 1] = first
        lengths.add(len(set(leader)))
        return MergePlan.from_leaders(torch.tensor([leader]), grid.n - len(set(leader)))

    modules = [name for name in ALL_MODULES if network == "unet" or name != "cross_attn"]
    with ABM(tau=0.8, quantile_of="tokens", modules=modules, metric="block_input").applied_to(model):
        seen = watch(model, given, block=block)["block"]
    for b in range(3):
        one = slice(b, b + 1)
        expected = block_by_hand(network, block, seen.x[one], rows(given, one), shortened, "block_input", modules)
        torch.testing.assert_close(seen.output[one], expected, atol=2e-5, rtol=0)
    assert len(lengths) > 1
    assert max(lengths) < grid.n


@pytest.mark.parametrize("kind", [ToMe, LGTM, SiTo, ABM, ToMA, CoReDiT])
@pytest.mark.parametrize("half", ["autocast", "weights"])
def test_plans_are_made_in_float32(kind, half, monkeypatch):
    """A bf16 tensor gives the plan of the same numbers in float32."""
    model = shared("unet") if half == "autocast" else fresh("unet").to(torch.bfloat16)
    compressor = kind(ratio=0.5, where=Where(part="down"))
    calls = []

    def spy(x, site, context):
        plan = kind.plan(compressor, x, site, context)
        calls.append((x, site, context, plan))
        return plan

    monkeypatch.setattr(compressor, "plan", spy)
    given = inputs("unet", dtype=torch.float32 if half == "autocast" else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"), compressor.applied_to(model):
        forward(model, given)
    [(x, site, context, plan)] = calls
    assert x.dtype == torch.bfloat16
    exact = kind.plan(compressor, x.float(), site, context)
    assert torch.equal(plan.restore, exact.restore)
    assert torch.equal(plan.kept, exact.kept)
