"""The KV family: `softmax(Q (DK)^T) DV`, with D written out as a matrix."""

import math

import pytest
import torch
from cases import every_network
from models import forward, fresh, inputs, rows, shared, watch

from bigain.backbones.sites import layout_of
from bigain.compressors import IEKVD, AveragePool, FrequencyKV, ToDo, Where
from bigain.diffusion.schedules import Linear
from bigain.tokens.grid import Grid
from bigain.tokens.scores import laplacian_l1

GRIDS = {"unet": Grid(8, 12), "dit": Grid(8, 8)}
SITES = {"unet": 6, "dit": 3}


def nearest(grid, factor):
    """One row per new token; `floor((i + 0.5) * n_in / n_out)` per side."""
    small = Grid(grid.h // factor, grid.w // factor)
    matrix = torch.zeros(small.n, grid.n)
    for i in range(small.h):
        for j in range(small.w):
            y, x = math.floor((i + 0.5) * grid.h / small.h), math.floor((j + 0.5) * grid.w / small.w)
            matrix[i * small.w + j, y * grid.w + x] = 1
    return matrix


def average(grid, factor):
    """One row per new token; windows of `n_in // n_out` per side."""
    small = Grid(grid.h // factor, grid.w // factor)
    height, width = grid.h // small.h, grid.w // small.w
    matrix = torch.zeros(small.n, grid.n)
    for i in range(small.h):
        for j in range(small.w):
            for y in range(height):
                for x in range(width):
                    matrix[i * small.w + j, (i * height + y) * grid.w + j * width + x] = 1 / (height * width)
    return matrix


def blend(grid, factor, alpha):
    return alpha * nearest(grid, factor) + (1 - alpha) * average(grid, factor)


def strongest(keep):
    def matrix(x, grid):
        score = laplacian_l1(x, grid)
        kept = score.argsort(dim=1, descending=keep == "high", stable=True)[:, : grid.n // 4].sort(1).values
        return torch.nn.functional.one_hot(kept, grid.n).float()

    return matrix


METHODS = [
    pytest.param(ToDo(factor=2), lambda _, grid: nearest(grid, 2), id="ToDo-2"),
    pytest.param(ToDo(factor=5), lambda _, grid: nearest(grid, 5), id="ToDo-5"),
    pytest.param(ToDo(factor=8), lambda _, grid: nearest(grid, 8), id="ToDo-8"),
    pytest.param(AveragePool(factor=3), lambda _, grid: average(grid, 3), id="AveragePool-3"),
    pytest.param(IEKVD(factor=2), lambda _, grid: blend(grid, 2, 0.9), id="IEKVD-2"),
    pytest.param(IEKVD(factor=3, alpha=0.1), lambda _, grid: blend(grid, 3, 0.1), id="IEKVD-3-0.1"),
    pytest.param(IEKVD(factor=2, alpha=-1), lambda _, grid: blend(grid, 2, -1.0), id="IEKVD-2--1"),
    pytest.param(FrequencyKV(ratio=0.75, keep="high"), strongest("high"), id="FrequencyKV-high"),
    pytest.param(FrequencyKV(ratio=0.75, keep="low"), strongest("low"), id="FrequencyKV-low"),
]


def attention_by_hand(attn, x, down):
    """Self-attention whose K and V are downsampled *after* their projections, as the paper writes it."""

    def heads(tokens):
        return tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2)

    q, k, v = heads(attn.to_q(x)), heads(down @ attn.to_k(x)), heads(down @ attn.to_v(x))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(3)
    return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


@every_network
@pytest.mark.parametrize(("compressor", "down"), METHODS)
def test_equals_the_formula(network, compressor, down):
    """Downsampling before the projections equals `D(XW + b) = D(X)W + b`; the DiT's projections have a bias."""
    model = shared(network)
    attn = layout_of(model).sites[SITES[network]].block.attn1
    assert (attn.to_k.bias is not None) == (network == "dit")
    with compressor.applied_to(model):
        seen = watch(model, inputs(network, 2), attn=attn)["attn"]
    expected = attention_by_hand(attn, seen.x, down(seen.x, GRIDS[network]))
    torch.testing.assert_close(seen.output, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@every_network
def test_alpha_follows_the_timestep_of_each_row(network, dtype):
    """A classification batch mixes timesteps: 0.8 at t = 999, 1.2 at t = 0."""
    model, given = shared(network), inputs(network, 3)
    given["timestep"] = torch.tensor([999, 0, 333], dtype=dtype)
    with IEKVD(factor=2, alpha=Linear(0.8, 1.2)).applied_to(model):
        output = forward(model, given)
    for i, alpha in enumerate((0.8, 1.2, 0.8 / 3 + 1.2 * 2 / 3)):
        with IEKVD(factor=2, alpha=alpha).applied_to(model):
            expected = forward(model, rows(given, slice(i, i + 1)))
        torch.testing.assert_close(output[i : i + 1], expected, atol=2e-5, rtol=0)


def test_frequency_selection_is_made_in_float32():
    model = shared("unet")
    attn = layout_of(model).sites[0].block.attn1
    with torch.autocast("cpu", torch.bfloat16), FrequencyKV(ratio=0.75, keep="high").applied_to(model):
        seen = watch(model, inputs("unet"), attn=attn, keys=attn.to_k)
    x = seen["attn"].x
    assert x.dtype == torch.bfloat16
    assert torch.equal(seen["keys"].x.float(), strongest("high")(x.float(), GRIDS["unet"]) @ x.float())


def test_fused_projections_are_refused():
    model, given = fresh("unet"), inputs("unet")
    with ToDo(factor=2).applied_to(model):
        expected = forward(model, given)
        model.fuse_qkv_projections()
        with pytest.raises(ValueError, match="fused QKV projections"):
            forward(model, given)
    with pytest.raises(ValueError, match=r"down_blocks\.0.* has fused QKV projections; call unfuse"):
        ToDo(factor=2).install(model)
    # The message says how to go on.
    model.unfuse_qkv_projections()
    for site in layout_of(model).sites:
        site.block.attn1.fuse_projections(fuse=False)
    with ToDo(factor=2).applied_to(model):
        assert torch.equal(forward(model, given), expected)


@every_network
def test_only_the_selected_sites_must_suit(network):
    model = fresh(network)
    sites = layout_of(model).sites
    sites[-1].block.attn1.fuse_projections()
    sites[-2].block.attn1.norm_q = torch.nn.LayerNorm(4)
    with ToDo(factor=2, where=Where(blocks=[0])).applied_to(model):
        pass
    for index, names in ((len(sites) - 1, "fused QKV"), (len(sites) - 2, "normalises queries and keys")):
        with pytest.raises(ValueError, match=names) as error:
            ToDo(factor=2, where=Where(blocks=[0, index])).install(model)
        assert sites[index].name in str(error.value)
        assert not sites[0].block.attn1._forward_pre_hooks
        assert not model._forward_pre_hooks
