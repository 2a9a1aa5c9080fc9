"""FeatureCache: against outputs that are put in by hand, its FLOPs, and what it refuses and leaves."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from models import attention, forward, fresh, inputs, rows, save_dit, shared, snapshot

from bigain.backbones import DiT, row_keys
from bigain.backbones.forward import Step
from bigain.backbones.geometry import backbone_without_weights
from bigain.backbones.sites import layout_of
from bigain.compressors import FeatureCache, ToMe
from bigain.cost.flops import Counted
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier

BROADCAST, TAYLOR = "PyramidAttentionBroadcastConfig", "TaylorSeerCacheConfig"
EVERY_SECOND = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [100, 800]}
# Steps 0, 1 and 3 compute; 2 and 4 extrapolate.
INTERVAL = {"cache_interval": 2, "disable_cache_before_step": 2, "taylor_factors_dtype": "float32"}
INTERVAL |= {"cache_identifiers": [r".*transformer_blocks[.][0-9]+[.](attn1|attn)"]}
TIMES = [900.0, 700.0, 500.0, 300.0, 50.0]


def sampled(model, calls):
    outputs = []
    for number, (given, timestep) in enumerate(zip(calls, TIMES, strict=True)):
        with row_keys(torch.arange(len(given["timestep"])), step=Step(number, timestep)):
            outputs.append(forward(model, given))
    return outputs


def by_hand(model, calls, outputs_at):
    """Run every step with outputs of self-attentions from `outputs_at(step, own outputs of earlier steps)`."""
    blocks = [site.block for site in layout_of(model).sites]
    kept, results = [], []
    for step, given in enumerate(calls):
        own = {}
        with ExitStack() as undo:
            for block in blocks:

                def put(module, args, output, block=block, step=step, own=own):
                    # Joint attentions return two tensors.
                    parts = output if isinstance(output, tuple) else (output,)
                    earlier = [of[block] for of in kept]
                    own[block] = tuple(
                        outputs_at(step, [of[i] for of in earlier] + [part]) for i, part in enumerate(parts)
                    )
                    return own[block] if isinstance(output, tuple) else own[block][0]

                undo.callback(attention(block).register_forward_hook(put).remove)
            results.append(forward(model, given))
        kept.append(own)
    return results


def broadcast(step, outputs):
    return outputs[-2] if step in (1, 3) else outputs[-1]


def taylor(step, outputs):
    if step not in (2, 4):
        return outputs[-1]
    last, other, gap = (1, 0, 1) if step == 2 else (3, 1, 2)
    return outputs[last] + (outputs[last] - outputs[other]) / gap


RULES = [(BROADCAST, EVERY_SECOND, broadcast), (TAYLOR, INTERVAL, taylor)]


@pytest.mark.parametrize(("cache", "options", "rule"), RULES)
@pytest.mark.parametrize("network", ["unet", "dit", "flux"])
def test_later_steps_take_outputs_of_earlier_ones_of_the_same_images(network, cache, options, rule):
    model = shared(network)
    calls = [inputs(network, 2, seed=seed) for seed in range(5)]
    before, plain = snapshot(model), [forward(model, given) for given in calls]
    with FeatureCache(cache=cache, options=options).applied_to(model):
        assert vars(model).get("_cache_config") is not None or network != "flux"
        first = sampled(model, calls)
        # Other images, another number of them: nothing of the earlier ones is left.
        alone = [rows(given, slice(0, 1)) for given in calls]
        for one, both in zip(sampled(model, alone), first, strict=True):
            torch.testing.assert_close(one, both[:1], rtol=0, atol=2e-5)
        assert all(map(torch.equal, sampled(model, calls), first))
    assert snapshot(model) == before
    assert all(map(torch.equal, [forward(model, given) for given in calls], plain))
    reused = {1, 3} if cache == BROADCAST else {2, 4}
    assert {step for step in range(5) if not torch.allclose(first[step], plain[step], atol=1e-4)} == reused
    for mine, theirs in zip(first, by_hand(model, calls, rule), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_flops_are_the_mean_of_the_steps(tmp_path):
    backbone = backbone_without_weights(str(save_dit(tmp_path)))
    model = Counted(backbone, backbone.latent_shape, backbone.blank_condition())
    steps = [Step(0, 900.0), Step(1, 700.0)]
    counted, baseline = model.count([FeatureCache(cache=BROADCAST, options=EVERY_SECOND)], None, steps), model.baseline
    n, c, blocks = 64, 16, 5
    attentions = blocks * (4 * 2 * n * c * c + 2 * 2 * n * n * c)
    assert counted.total == baseline.total - attentions // 2
    assert sum(counted.by_category.values()) == pytest.approx(counted.total, abs=20)
    assert model.count((), None, steps) == baseline
    late = {**EVERY_SECOND, "spatial_attention_timestep_skip_range": [0, 40]}
    with pytest.raises(InputError, match="FeatureCache saves nothing in 2 steps"):
        model.count([FeatureCache(cache=BROADCAST, options=late)], None, steps)
    with pytest.raises(InputError, match="follows the steps of DiffusionSampler"):
        model.count([FeatureCache(cache=BROADCAST)])


@pytest.mark.parametrize(
    ("cache", "options", "words"),
    [
        ("FirstBlockCacheConfig", {}, "cache must be one of Pyramid"),
        (TAYLOR, {"interval": 3}, "options of TaylorSeerCacheConfig: .* unexpected keyword argument 'interval'"),
        (TAYLOR, {"cache_interval": 0}, "options: cache_interval must be a whole number of at least 2, not 0"),
        (
            TAYLOR,
            {"disable_cache_before_step": 0},
            "disable_cache_before_step must be a whole number of at least 1, not 0",
        ),
        (BROADCAST, {"spatial_attention_timestep_skip_range": 100}, "must be two timesteps, such as"),
        (TAYLOR, {"taylor_factors_dtype": "int64"}, "taylor_factors_dtype must be one of bfloat16, .*, not 'int64'"),
        (TAYLOR, {"cache_identifiers": ["(attn"]}, r"cache_identifiers must be a list of regular .*, not \['\(attn'\]"),
        (TAYLOR, {"skip_predict_identifiers": [1]}, r"must be a list of regular expressions, not \[1\]"),
        # As a sequence of characters, it would match every attention.
        (
            BROADCAST,
            {"spatial_attention_block_identifiers": "blocks.0"},
            "a list of regular expressions, not 'blocks.0'",
        ),
    ],
)
def test_settings_that_are_refused(cache, options, words):
    with pytest.raises(InputError, match=words):
        FeatureCache(cache=cache, options=options)


def test_networks_that_are_refused():
    model, compressor = fresh("dit"), FeatureCache(cache=BROADCAST)
    before = snapshot(model)
    with pytest.raises(InputError, match="finds no module to cache in DiTTransformer2DModel"):
        # Its default names of modules are those of FLUX.
        FeatureCache(cache=TAYLOR).install(model)
    with ToMe(ratio=0.5).applied_to(model), pytest.raises(InputError, match="ToMe is installed there"):
        compressor.install(model)
    assert snapshot(model) == before
    apply_pyramid_attention_broadcast(model, PyramidAttentionBroadcastConfig(2, current_timestep_callback=int))
    with pytest.raises(InputError, match=r"has hooks of diffusers already; call disable_cache\(\)"):
        compressor.install(model)
    module = SimpleNamespace(generates=True, backbone=SimpleNamespace(compilation="whole"))
    with pytest.raises(InputError, match="use compile: none"):
        compressor.check_module(module)


def test_a_classifier_refuses_before_weights_are_read():
    backbone = DiT("shapes_dit")
    module = DiffusionClassifier(backbone)
    with pytest.raises(InputError, match="FeatureCache only generates: it reuses features of earlier steps"):
        FeatureCache(cache=BROADCAST).setup(None, module, "predict")
    assert not backbone.loaded
