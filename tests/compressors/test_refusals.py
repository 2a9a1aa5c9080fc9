"""Everything that cannot work is a ValueError whose sentence names the value, and leaves nothing behind."""

import pytest
import torch
from cases import every_network
from models import JOINT, LATENTS, forward, inputs, shared, snapshot

from bigain.backbones.sites import layout_of
from bigain.compressors import ABM, CAM, LGTM, CoReDiT, FrequencyKV, SiTo, ToDo, ToFu, ToMA, ToMe, Where, methods
from bigain.compressors.kv import FactorDownsampler
from bigain.compressors.merging import CellMerger
from bigain.errors import InputError
from bigain.tokens.grid import Grid

MERGERS = [kind for kind in methods().values() if issubclass(kind, CellMerger)]
DOWNSAMPLERS = [kind for kind in methods().values() if issubclass(kind, FactorDownsampler)]


@pytest.mark.parametrize("kind", MERGERS)
@pytest.mark.parametrize(
    ("ratio", "cell", "names"),
    [
        (0, (2, 2), "at most 0.75 .* not 0$"),
        (0.76, (2, 2), "at most 0.75 .*2x2 cell stays.*, not 0.76"),
        (float("nan"), (2, 2), "not nan"),
        (0.9, (3, 3), "at most 0.888889 "),
        (0.5, (1, 1), r"at least two tokens, not \(1, 1\)"),
        (0.5, (2, 2, 2), r"not \(2, 2, 2\)"),
    ],
)
def test_ratios_and_cells(kind, ratio, cell, names):
    with pytest.raises(InputError, match=names):
        kind(ratio=ratio, cell=cell)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ToMe(ratio=0.5, destination="released"), "one of random, first, redrawn, not 'released'"),
        (lambda: LGTM(ratio=0.5, destination="argmax"), "one of cell, released, .*, not 'argmax'"),
        (lambda: ToMe(ratio=0.5, mode="max"), "mode must be one of mean, prune, mlerp, not 'max'"),
        (lambda: ToFu(ratio=0.5, prune_below=-1), "prune_below must be at least 0, not -1"),
        (lambda: ToMe(ratio=0.5, modules=[]), r"self_attn, cross_attn, mlp, not \[\]"),
        (lambda: ToMe(ratio=0.5, modules=["mlp", "mlp"]), "distinct"),
        (lambda: SiTo(metric="keys"), "block_input, attn_input or null, not 'keys'"),
        (lambda: SiTo(noise_alpha=-0.1), "at least 0, not -0.1"),
        (lambda: ToMA(temperature=0), "temperature must be above 0, not 0"),
        (lambda: CoReDiT(ratio=0.67), r"cell \[3, 3\] allows 0.667, not 0.67"),
        (lambda: CoReDiT(cell=(1, 4)), r"cell \[1, 4\] allows 0, not 0.4"),
        (lambda: CoReDiT(windows=[16, 1]), r"not \[16, 1\]"),
        (lambda: ABM(ratio=0.5, tau=0.5), "exactly one of ratio and tau, not ratio=0.5 and tau=0.5; set one"),
        (lambda: ABM(tau=0), "tau must be above 0 and at most 1, not 0"),
        (lambda: ABM(ratio=0.5, aggregate="median"), "one of max, sum, mean, min, std, not 'median'"),
        (lambda: ABM(tau=0.5, quantile_of="rows"), "quantile_of must be one of cells, tokens, not 'rows'"),
        (lambda: ABM(ratio=0.5, quantile_of="tokens"), "needs tau and aggregate max, not tau=None, aggregate='max'"),
        (lambda: ABM(tau=0.5, quantile_of="tokens", aggregate="min"), "not tau=0.5, aggregate='min'"),
        (lambda: LGTM(ratio=0.5, source_quantile=0), "above 0 and at most 1, or null, not 0"),
        (lambda: FrequencyKV(ratio=1, keep="high"), "not 1$"),
        (lambda: FrequencyKV(ratio=0.5, keep="middle"), "keep must be one of high, low, not 'middle'"),
    ],
)
def test_options(make, names):
    with pytest.raises(InputError, match=names):
        make()


@pytest.mark.parametrize("kind", DOWNSAMPLERS)
@pytest.mark.parametrize("factor", [1, 2.0, True, "2"])
def test_factors(kind, factor):
    with pytest.raises(InputError, match=f"{kind.__name__} needs an integer factor of at least 2 .*, not {factor!r}"):
        kind(factor=factor)


@pytest.mark.parametrize("kind", DOWNSAMPLERS)
@every_network
def test_factors_larger_than_the_map(kind, network):
    model = shared(network)
    with kind(factor=8).applied_to(model):
        forward(model, inputs(network))
    with (
        kind(factor=9).applied_to(model),
        pytest.raises(InputError, match=f"{kind.__name__} with factor 9 does not fit the 8x(12|8) tokens at .*0"),
    ):
        forward(model, inputs(network))
    with pytest.raises(InputError, match="factor 9 does not fit"):
        kind(factor=9).tokens_out(layout_of(model).sites[0], Grid(*LATENTS[network][1:]))


@pytest.mark.parametrize(
    ("compressor", "names"),
    [
        (ToMe(ratio=0.01), "ToMe with ratio 0.01 and 2x2 cells removes nothing of the 8x(12|8) tokens at .*0"),
        (CAM(LGTM(ratio=0.01)), "LGTM with ratio 0.01"),
        (ABM(ratio=0.03), "ABM with ratio=0.03, tau=None merges none of the (24|16) cells"),
        (ABM(tau=0.04, quantile_of="tokens"), "ABM with ratio=None, tau=0.04 merges none"),
        (LGTM(ratio=0.5, source_quantile=0.6), "merges (48|32) tokens .*source_quantile 0.6 allows only (43|28)"),
        (SiTo(ratio=0.01), "SiTo with ratio 0.01"),
        (ToMe(ratio=0.5, cell=(13, 13)), "13x13 cells removes nothing"),
        (FrequencyKV(ratio=0.999, keep="low"), "FrequencyKV with ratio 0.999 keeps 0 of"),
        (FrequencyKV(ratio=1e-20, keep="low"), "FrequencyKV with ratio 1e-20 keeps (96|64) of (96|64)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@every_network
def test_nothing_to_remove(compressor, names, network):
    """At the latest in the first forward, and already when only shapes are known."""
    model, given = shared(network), inputs(network)
    before = forward(model, given)
    with compressor.applied_to(model), pytest.raises(InputError, match=names):
        forward(model, given)
    assert torch.equal(forward(model, given), before)
    with pytest.raises(InputError, match=names):
        compressor.tokens_out(layout_of(model).sites[0], Grid(*LATENTS[network][1:]))


def test_tiles_of_one_token_are_explained():
    site, latent = layout_of(shared("dit")).sites[0], Grid(10, 14)
    with pytest.raises(InputError, match=r"0.5 divides the 5x7 tokens at .*0 into tiles of 1x1 .*enlarge the cell"):
        ToMA(ratio=0.5, cell=(4, 4)).tokens_out(site, latent)
    assert ToMA(ratio=0.5, cell=(8, 8)).tokens_out(site, latent) == 18


@pytest.mark.parametrize("network", JOINT)
@pytest.mark.parametrize("wrap", [lambda merger: merger, CAM], ids=["ABM", "CAM"])
def test_padding_needs_an_attention_that_takes_a_mask(network, wrap):
    model = shared(network)
    before = snapshot(model)
    with pytest.raises(InputError, match=r"(ABM|CAM) pads sequences, but the attention of .*0 takes no mask"):
        wrap(ABM(tau=0.8, quantile_of="tokens")).install(model)
    assert snapshot(model) == before


def test_the_released_rule_needs_whole_cells_in_a_row():
    given = {**inputs("unet", 2), "sample": torch.zeros(2, 4, 8, 13)}
    with (
        LGTM(ratio=0.5, destination="released").applied_to(shared("unet")) as model,
        pytest.raises(InputError, match=r"width divisible by 2, not 13 .*; use destination cell"),
    ):
        forward(model, given)


@every_network
@pytest.mark.parametrize("where", [Where(part="mid"), Where(min_stride=8, max_stride=8), Where(blocks=[])])
def test_no_site(network, where):
    model = shared(network)
    before = snapshot(model)
    with pytest.raises(InputError, match=f"no site of {type(model).__name__} is selected by Where"):
        ToDo(factor=2, where=where).install(model)
    assert snapshot(model) == before


def test_cross_attention_of_a_dit():
    model = shared("dit")
    before = snapshot(model)
    with pytest.raises(InputError, match=r"transformer_blocks\.0 has no cross_attn to merge tokens around"):
        ToMe(ratio=0.5, modules=["self_attn", "cross_attn"]).install(model)
    assert snapshot(model) == before
