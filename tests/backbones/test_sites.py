"""The transformer blocks of a network, found from its structure."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from models import DIT_XL_2_512, SD_2_0, forward, inputs, on_meta, tiny_dit, tiny_unet, watch
from torch import nn

from bigain.backbones.sites import Layout, Site, layout_of
from bigain.errors import InputError
from bigain.tokens.grid import Grid

TWO_LEVELS = {"block_out_channels": (8, 16), "attention_head_dim": (1, 2)}


def described(model):
    return [(site.part, site.stride) for site in layout_of(model).sites]


def test_a_tiny_unet():
    layout = layout_of(tiny_unet())
    assert (layout.model, layout.latents, layout.metric) == ("UNet2DConditionModel", "sample", "block_input")
    assert [(site.name, site.index, site.part, site.stride, site.patch) for site in layout.sites] == [
        ("down_blocks.0.attentions.0.transformer_blocks.0", 0, "down", 1, 1),
        ("down_blocks.1.attentions.0.transformer_blocks.0", 1, "down", 2, 1),
        ("mid_block.attentions.0.transformer_blocks.0", 2, "mid", 4, 1),
        ("up_blocks.1.attentions.0.transformer_blocks.0", 3, "up", 2, 1),
        ("up_blocks.1.attentions.1.transformer_blocks.0", 4, "up", 2, 1),
        ("up_blocks.2.attentions.0.transformer_blocks.0", 5, "up", 1, 1),
        ("up_blocks.2.attentions.1.transformer_blocks.0", 6, "up", 1, 1),
    ]


@pytest.mark.parametrize("build", [tiny_unet, tiny_dit])
def test_names_are_paths_and_indices_the_order_of_execution(build):
    model, ran = build(), []
    for site in layout_of(model).sites:
        assert model.get_submodule(site.name) is site.block
        site.block.register_forward_pre_hook(lambda *_, index=site.index: ran.append(index))
    forward(model, inputs("unet" if build is tiny_unet else "dit", 1))
    assert ran == list(range(len(layout_of(model).sites)))


def test_stable_diffusion_2_0():
    """16 blocks, of which 5 at stride 1: N = 4096 and C = 320 with 5 heads of 64 at 512 px."""
    sites = layout_of(on_meta(UNet2DConditionModel, SD_2_0)).sites
    assert [(site.part, site.stride) for site in sites] == [
        *[("down", stride) for stride in (1, 1, 2, 2, 4, 4)],
        ("mid", 8),
        *[("up", stride) for stride in (4, 4, 4, 2, 2, 2, 1, 1, 1)],
    ]
    first = [site for site in sites if site.stride == 1]
    assert [site.part for site in first] == ["down"] * 2 + ["up"] * 3
    for site in first:
        assert site.grid(Grid(64, 64)) == (64, 64)
        assert (site.block.attn1.heads, site.block.attn1.inner_dim) == (5, 320)
    assert sites[6].grid(Grid(64, 64)).n == 64


def test_dit_xl_2_512():
    """28 blocks on 1024 tokens, C = 1152 with 16 heads of 72."""
    sites = layout_of(on_meta(DiTTransformer2DModel, DIT_XL_2_512)).sites
    assert len(sites) == 28
    assert {(site.part, site.stride, site.grid(Grid(64, 64))) for site in sites} == {(None, 1, Grid(32, 32))}
    assert (sites[0].block.attn1.heads, sites[0].block.attn1.inner_dim) == (16, 1152)


@pytest.mark.parametrize("side", [(8, 12), (9, 13), (10, 11), (5, 7), (13, 8)])
def test_the_grid_is_the_token_map_of_a_unet(side):
    """Odd sides round up at every downsampler."""
    model = tiny_unet()
    sites = layout_of(model).sites
    sample = torch.zeros(1, 4, *side)
    seen = watch(model, {**inputs("unet", 1), "sample": sample}, **{f"at{site.index}": site.block for site in sites})
    assert [seen[f"at{site.index}"].x.shape[1] for site in sites] == [site.grid(Grid(*side)).n for site in sites]
    assert sites[2].grid(Grid(9, 13)) == (3, 4)


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("side", [16, 17, 19])
def test_the_grid_is_the_token_map_of_a_dit(side, patch):
    """A patch embedding drops an incomplete patch."""
    model = tiny_dit(patch_size=patch)
    sites = layout_of(model).sites
    given = {**inputs("dit", 1), "hidden_states": torch.zeros(1, 4, side, side)}
    assert watch(model, given, block=sites[0].block)["block"].x.shape[1] == sites[0].grid(Grid(side, side)).n
    assert sites[0].grid(Grid(side, side)) == (side // patch, side // patch)


@pytest.mark.parametrize("mid", ["UNetMidBlock2D", "UNetMidBlock2DCrossAttn"])
def test_bare_attentions_are_no_sites(mid):
    """Kandinsky's U-Net, and levels with attention but no transformer block."""
    model = tiny_unet(
        down_block_types=("AttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type=mid,
        up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"),
        **TWO_LEVELS,
    )
    middle = [("mid", 2)] if mid == "UNetMidBlock2DCrossAttn" else []
    assert described(model) == [*middle, ("up", 2), ("up", 2)]


def test_attentions_to_the_text_alone_are_no_sites():
    """Their keys are not image tokens, and what follows the first of them depends on the text."""
    unet = tiny_unet(only_cross_attention=[True, False, False])
    layout = layout_of(unet)
    assert [site.name for site in layout.sites if site.part == "down"] == [
        "down_blocks.1.attentions.0.transformer_blocks.0"
    ]
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1 not in layout.prefix


def test_unknown_networks_are_named():
    class MysteryTransformer(nn.Module):
        pass

    with pytest.raises(InputError, match=r"^MysteryTransformer is not a network .*UNet2DConditionModel or DiTTransf"):
        layout_of(MysteryTransformer())


def test_a_new_architecture_registers_itself():
    class Registered(nn.Module):
        pass

    @layout_of.register
    def _(denoiser: Registered) -> Layout:
        return Layout("Registered", (Site("block", 0, None, 1, denoiser),), "x", "block_input")

    assert layout_of(Registered()).sites[0].name == "block"
