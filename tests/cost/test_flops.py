"""FLOPs by category: against torch's own count of the real network, and against formulas."""

from contextlib import nullcontext

import pytest
from cases import ALL_MODULES, CASES, build, every_method, every_network
from models import forward, inputs, rows, save_dit, save_stable_diffusion, shared, snapshot
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones.geometry import backbone_without_weights
from bigain.backbones.marks import mark
from bigain.backbones.sites import layout_of
from bigain.compressors import ABM, CAM, IEKVD, LGTM, FrequencyKV, SiTo, ToDo, ToMA, ToMe
from bigain.cost.flops import CATEGORIES, Counted, count_flops
from bigain.tokens.grid import Grid

AROUND_ALL = [case for case in CASES if case["kwargs"].get("modules") == ALL_MODULES]
SAVE = {"unet": save_stable_diffusion, "dit": save_dit}


# Tokens and width of the text that cross-attentions read.
TEXTS = {"sd2": (77, 1024), "dit_xl_2_512": (0, 0), "pixart_512": (120, 1152), "sdxl": (77, 2048)}

# Published: 804.26 (Table 11 of BiGain) and 525, multiply-adds (README of github.com/facebookresearch/DiT).
TOTALS = {"sd2": 804.257, "dit_xl_2_512": 1049.167}


@pytest.fixture(scope="module", params=[*list(TEXTS)[:3], pytest.param("sdxl", marks=pytest.mark.slow)])
def full_size(request):
    return request.param, backbone_without_weights(request.param)


@pytest.fixture(scope="module")
def sd2():
    return backbone_without_weights("sd2")


def count(backbone, compressor=None):
    counted = Counted(backbone, backbone.latent_shape, backbone.blank_condition())
    return counted.count([] if compressor is None else [compressor]), counted.baseline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny backbone of each kind, without weights."""
    return {name: backbone_without_weights(str(save(tmp_path_factory.mktemp(name)))) for name, save in SAVE.items()}


def test_flops_are_the_mean_over_the_evaluations(saved):
    backbone, during = saved["dit"], [250, 999]
    counted = Counted(backbone, backbone.latent_shape, backbone.blank_condition())
    (always, never), (sometimes, baseline) = (count(backbone, ToMe(ratio=0.5, during=d)) for d in (None, during))
    assert never.total == baseline.total
    assert sometimes.total == pytest.approx(0.75 * always.total + 0.25 * never.total, rel=1e-6)
    assert sum(sometimes.by_category.values()) == pytest.approx(sometimes.total, abs=9)
    few = counted.count([ToMe(ratio=0.5, during=during)], {10: 3, 249: 1, 250: 4})
    assert few.by_category["matching"] == always.by_category["matching"] / 2 > 0


@pytest.mark.parametrize(("case", "network"), [*every_method.args[1], *((case, "unet") for case in AROUND_ALL)])
def test_the_categories_are_what_torch_counts_on_the_real_network(case, network, saved):
    model, given = shared(network), rows(inputs(network), slice(0, 1))
    latent = next(iter(given.values())).shape[1:]
    condition = given["class_labels"] if network == "dit" else given["encoder_hidden_states"]
    # Only this backend consists of operations that every version of torch counts.
    with build(case).applied_to(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(model, given)
    counts = Counted(saved[network], tuple(latent), condition)
    counted, baseline = counts.count([build(case)]), counts.baseline
    assert tuple(counted.by_category) == CATEGORIES
    assert counted.total == counter.get_total_flops()
    # What a compressor does not touch stays as it is.
    assert counted.by_category["convolution"] == baseline.by_category["convolution"]
    compressor = build(case)
    modules = () if compressor.pads else getattr(compressor, "modules", ("self_attn",))
    for module, category in (("self_attn", "self_attention"), ("cross_attn", "cross_attention"), ("mlp", "mlp")):
        assert (counted.by_category[category] < baseline.by_category[category]) == (module in modules)


def test_the_baselines_categories_follow_from_the_sizes(full_size):
    """Tokens, channels and the text of each block, by hand."""
    name, backbone = full_size
    flops, baseline = count(backbone)
    assert flops is baseline
    latent, (tokens, width) = Grid(*backbone.latent_shape[1:]), TEXTS[name]
    attention = projections = cross = mlp = 0
    for site in layout_of(backbone.denoiser).sites:
        n, c = site.grid(latent).n, site.block.attn1.to_q.in_features
        attention += 4 * n * n * c
        projections += 8 * n * c * c
        if site.block.attn2 is not None:
            cross += 4 * n * c * c + 4 * tokens * width * c + 4 * n * tokens * c
        # In a U-Net, the first layer of GEGLU is twice as wide; a linear layer leads into each transformer, one out.
        mlp += (16 if site.part is None else 24) * n * c * c
        if site.part is not None and site.name.endswith(".transformer_blocks.0"):
            projections += 4 * n * c * c
    counted = baseline.by_category
    assert (counted["self_attention"], counted["cross_attention"], counted["mlp"]) == (attention, cross, mlp)
    # The rest: embeddings of time and class, one row each; of the text, of 120 tokens.
    assert projections < counted["projections"] < 1.01 * projections
    assert counted["matching"] == counted["scoring"] == 0
    total = TOTALS.get(name)
    assert total is None or flops.total / 1e9 == pytest.approx(total, abs=5e-4)


N, C, SITES = 4096, 320, 5
SIMILARITY = 2 * (3 * N // 4) * (N // 4) * C
LAPLACIAN = 2 * 9 * N * C


@pytest.mark.parametrize(
    ("compressor", "matching", "scoring", "published"),
    [
        (ToMe(ratio=0.7), 5 * SIMILARITY, 0, 704.873),
        (LGTM(ratio=0.7), 5 * SIMILARITY, 5 * LAPLACIAN, 704.991),
        (CAM(LGTM(ratio=0.7)), 2 * SIMILARITY, 2 * LAPLACIAN, 698.881),
        # The release scores twice, which costs 0.118 more: 695.08 in print.
        (ABM(ratio=0.7), 0, 5 * LAPLACIAN, 695.0825 - 0.118),
        (SiTo(ratio=0.7), 5 * 2 * N * N * C, 0, 748.494),
        # Two plans in tiles of 64 tokens, 20 of which stay; five sites merge and restore.
        (ToMA(ratio=0.7), 2 * N * 64 * C * 2 + 5 * 2 * 2 * N * 20 * C, 0, None),
        (ToDo(factor=3), 0, 0, None),
        (IEKVD(factor=3), 0, 0, None),
        (FrequencyKV(ratio=0.75, keep="low"), 0, 5 * LAPLACIAN, None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "where") else None,
)
def test_what_a_compressor_spends_and_saves_on_sd2(sd2, compressor, matching, scoring, published):
    """Published: the paper's efficiency table."""
    flops, baseline = count(sd2, compressor)
    assert published is None or flops.total / 1e9 == pytest.approx(published, abs=5e-4)
    spent, full = flops.by_category, baseline.by_category
    assert (spent["matching"], spent["scoring"]) == (matching, scoring)
    sites = compressor.sites_of(sd2.denoiser)
    assert len(sites) == SITES
    left = compressor.tokens_out(sites[0], Grid(*sd2.latent_shape[1:]))
    queries = N if matching == 0 and not isinstance(compressor, ABM) else left
    assert full["self_attention"] - spent["self_attention"] == SITES * 4 * C * (N * N - queries * left)
    assert full["projections"] - spent["projections"] == SITES * 2 * C * C * (4 * N - 2 * queries - 2 * left)
    assert {name: spent[name] for name in ("cross_attention", "mlp", "convolution")} == {
        name: full[name] for name in ("cross_attention", "mlp", "convolution")
    }


@every_network
def test_counting_leaves_nothing_behind(saved, network):
    backbone = saved[network]
    denoiser, before = backbone.denoiser, snapshot(backbone.denoiser)
    count(backbone, LGTM(ratio=0.5))
    with pytest.raises(RuntimeError):
        count_flops(backbone, (5, 16, 16), backbone.blank_condition())
    assert backbone.denoiser is denoiser
    assert snapshot(denoiser) == before
    assert isinstance(mark("matching"), nullcontext)
