"""The contract of every compressor on a U-Net and a DiT, and of each mechanism on every network."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from itertools import islice
from threading import Barrier

import numpy as np
import pytest
import torch
from cases import (
    build,
    every_architecture,
    every_case_and_architecture,
    every_case_and_kind,
    every_case_and_network,
    every_method_and_architecture,
    every_method_and_network,
)
from models import (
    JOINT,
    LATENTS,
    NETWORKS,
    PROMPT_TOKENS,
    TODAY,
    TOKENS,
    attention,
    forward,
    fresh,
    inputs,
    mlp,
    rows,
    shared,
    small_unet,
    snapshot,
)

from bigain.backbones import row_keys
from bigain.backbones.flux import image_ids
from bigain.backbones.sites import layout_of
from bigain.compressors import IEKVD, ToDo, ToMe, Where
from bigain.compressors.base import _owners
from bigain.compressors.merging import TokenMerger
from bigain.diffusion.schedules import Linear
from bigain.errors import InputError
from bigain.tokens.grid import Grid

EVERYWHERE = Where(max_stride=4)
EARLY = Where(blocks=[0])
LATE = {"unet": [5, 6], "dit": [2, 3], "sd3": [2, 3], "flux": [2, 3], "pixart": [1, 2], "sdxl": [3, 4]}


class Boom(Exception):
    pass


def fail(*_):
    raise Boom


@pytest.fixture(scope="module")
def untouched():
    return {network: forward(shared(network), inputs(network)) for network in (*NETWORKS, *JOINT, *TODAY)}


def blocks_of(network):
    return [site.block for site in layout_of(shared(network)).sites]


@every_case_and_network
def test_acts_while_installed_and_leaves_nothing(case, network, untouched):
    model, given = shared(network), inputs(network)
    before = snapshot(model)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    compressor = build(case)
    for name, value in case["kwargs"].items():
        if name != "inner":
            assert compressor.settings()[name] == (tuple(value) if isinstance(value, list) else value)
    with compressor.applied_to(model) as same:
        assert same is model
        assert len(_owners) == len(compressor.sites_of(model))
        inside = forward(model, given)
    assert inside.shape == untouched[network].shape
    assert inside.isfinite().all()
    assert not torch.allclose(inside, untouched[network], atol=1e-4)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert snapshot(model) == before
    assert not _owners
    assert torch.equal(forward(model, given), untouched[network])


@every_case_and_architecture
def test_repeats_itself(case, network, request):
    """Whatever the state of torch's generator, and its default dtype, which Lightning's bf16-true changes."""
    model, given = shared(network), inputs(network)
    with build(case).applied_to(model):
        first = forward(model, given)
        assert not torch.equal(forward(model, inputs(network, seed=2)), first)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            by_position = model(*given.values(), return_dict=False)[0]
        assert torch.equal(by_position, first)
        request.getfixturevalue("bfloat16_by_default")
        assert torch.equal(forward(model, given), first)
    with build(case).applied_to(model):
        assert torch.equal(forward(model, given), first)


@every_case_and_kind
def test_rows_do_not_depend_on_their_batch(case, network):
    """On two of three inputs: matrix products round by batch, and on some processor some near tie falls otherwise."""
    agreeing = (seed for seed in (1, 2, 3) if rows_agree(case, network, seed))
    assert len(list(islice(agreeing, 2))) == 2


def rows_agree(case, network, seed):
    model, given = shared(network), inputs(network, 3, seed=seed)
    keys, classes = torch.tensor([5, 5, 9]), torch.tensor([0, 1, 0])
    with build(case).applied_to(model):
        with row_keys(keys, classes):
            batch = forward(model, given)
        parts = (slice(0, 1), slice(1, 3))
        alone = []
        for part in parts:
            with row_keys(keys[part], classes[part]):
                alone.append(forward(model, rows(given, part)))
    return all(torch.allclose(one, batch[part], atol=2e-5, rtol=0) for part, one in zip(parts, alone, strict=True))


@every_method_and_network
def test_survives_exceptions_in_a_forward(case, network, untouched):
    model, given, small = shared(network), inputs(network), inputs(network, 2)
    last, compressor = blocks_of(network)[-1], build(case)
    with compressor.applied_to(model):
        expected = forward(model, small)
        with mlp(last).register_forward_pre_hook(fail), pytest.raises(Boom):
            forward(model, given)
        # Another batch size: a plan that had survived would not fit.
        assert torch.equal(forward(model, small), expected)
    with attention(last).register_forward_pre_hook(fail), pytest.raises(Boom), compressor.applied_to(model):
        forward(model, given)
    assert torch.equal(forward(model, given), untouched[network])


@every_architecture
def test_an_exception_drops_the_context(network):
    """A block that runs by itself has no forward to belong to, also after one that broke off."""
    model, block = shared(network), blocks_of(network)[0]
    tokens = torch.zeros(1, TOKENS[network], attention(block).to_q.in_features)
    with ToMe(ratio=0.5, metric="block_input").applied_to(model):
        with attention(block).register_forward_hook(fail), pytest.raises(Boom):
            forward(model, inputs(network))
        with pytest.raises(RuntimeError, match="outside a forward of the whole network"):
            block(tokens)


@every_architecture
@pytest.mark.parametrize("compressor", [ToMe(ratio=0.5), IEKVD(factor=2, alpha=Linear(0.5, 1.5))])
def test_threads_do_not_share_the_context(compressor, network):
    model, calls = shared(network), [inputs(network, 2), inputs(network, 3)]
    both_began = Barrier(2, timeout=60)

    def wait(*_):
        both_began.wait()

    with compressor.applied_to(model), ThreadPoolExecutor(2) as pool:
        expected = [forward(model, given) for given in calls]
        with blocks_of(network)[0].register_forward_pre_hook(wait, prepend=True):
            outputs = list(pool.map(lambda given: forward(model, given), calls))
    assert all(map(torch.equal, outputs, expected))


@every_architecture
@pytest.mark.parametrize("compressor", [ToMe(ratio=0.5), ToDo(factor=2)])
def test_a_copy_of_a_compressed_network_is_refused(compressor, network):
    with compressor.applied_to(shared(network)):
        twin = deepcopy(shared(network))
    with pytest.raises(InputError, match="copy the network before"):
        forward(twin, inputs(network))


@every_architecture
def test_gradient_checkpointing_is_refused_where_gradients_are_computed(network):
    model = fresh(network)
    model.enable_gradient_checkpointing()
    with ToMe(ratio=0.5).applied_to(model):
        forward(model, inputs(network))
        with pytest.raises(InputError, match=r"disable_gradient_checkpointing\(\)"):
            model(**inputs(network))


@every_method_and_architecture
def test_keeps_the_users_hooks(case, network):
    model, given = shared(network), inputs(network, 2)
    block = blocks_of(network)[0]
    watched = [model, block, attention(block), mlp(block), attention(block).to_q]
    calls = []
    handles = []
    for i, module in enumerate(watched):
        handles.append(module.register_forward_pre_hook(lambda *_, i=i: calls.append(("pre", i))))
        handles.append(module.register_forward_hook(lambda *_, i=i: calls.append(("post", i))))
    try:
        forward(model, given)
        once, calls[:] = list(calls), []
        with build(case).applied_to(model):
            late = block.register_forward_hook(lambda *_: calls.append(("late", 1)))
            with late:
                forward(model, given)
            assert sorted(calls) == sorted([*once, ("late", 1)])
        calls[:] = []
        forward(model, given)
        assert calls == once
    finally:
        for handle in handles:
            handle.remove()


@every_method_and_architecture
def test_one_owner_per_site(case, network):
    model, given = shared(network), inputs(network, 2)
    with build(case, EARLY).applied_to(model):
        alone, hooked = forward(model, given), snapshot(model)
        for second in (build(case, EARLY), build(case, EVERYWHERE), ToDo(factor=2, where=EVERYWHERE)):
            names = f"{type(second).__name__} cannot act on .*: {case['class'].__name__} is installed"
            with pytest.raises(ValueError, match=names):
                second.install(model)
            assert snapshot(model) == hooked
            assert len(_owners) == 1
        assert torch.equal(forward(model, given), alone)


@every_method_and_network
def test_composes_on_disjoint_sites(case, network):
    model, given = shared(network), inputs(network, 2)
    late = Where(blocks=LATE[network])
    first, second = build(case, EARLY).install(model), ToDo(factor=2, where=late).install(model)
    both = forward(model, given)
    first.close()
    alone = forward(model, given)
    with build(case, EARLY).applied_to(model):
        assert torch.equal(forward(model, given), both)
    second.close()
    assert not torch.allclose(both, alone, atol=1e-4)
    assert not torch.allclose(alone, forward(model, given), atol=1e-4)


@pytest.fixture(scope="module")
def meta():
    with torch.device("meta"):
        return {"unet": small_unet(), **{network: fresh(network) for network in ("dit", *JOINT)}}


@every_method_and_architecture
def test_runs_on_the_meta_device(case, network, meta):
    given = {name: value.to("meta") for name, value in inputs(network).items()}
    if network == "flux":
        given["img_ids"] = image_ids(Grid(8, 12), torch.device("meta"))
    with build(case).applied_to(meta[network]):
        output = forward(meta[network], given)
    assert output.device.type == "meta"
    shapes = {"unet": (4, 8, 12), "dit": (8, 16, 16), "sd3": (4, 16, 24), "flux": (96, 16)}
    assert output.shape == (3, *shapes[network])


@pytest.fixture(scope="module")
def half():
    return {network: fresh(network).to(torch.bfloat16) for network in (*NETWORKS, *JOINT)}


@every_method_and_architecture
def test_runs_in_half_precision(case, network, half):
    model, given = half[network], inputs(network, dtype=torch.bfloat16)
    plain = forward(model, given)
    with build(case).applied_to(model):
        output = forward(model, given)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert not torch.equal(output, plain)


# Of FLUX without compressors, too.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@every_method_and_architecture
def test_runs_under_autocast(case, network, untouched):
    model, given = shared(network), inputs(network)
    with torch.autocast("cpu", torch.bfloat16), build(case).applied_to(model):
        output = forward(model, given)
    assert output.isfinite().all()
    assert not torch.allclose(output.float(), untouched[network], atol=0.05)


@every_case_and_network
def test_tells_how_many_tokens_are_left(case, network):
    model = shared(network)
    compressor = build(case)
    site = compressor.sites_of(model)[-1]
    n = TOKENS[network]
    left = compressor.tokens_out(site, Grid(*LATENTS[network][1:]))
    assert left == n if compressor.pads else 0 < left < n
    modules = compressor.modules if isinstance(compressor, TokenMerger) else ("keys",)
    block = site.block
    # Normalised keys are downsampled after their projection.
    shorter_keys = {"self_attn", "keys"} if network not in JOINT else {"self_attn"}
    expected = {
        "queries": (attention(block).to_q, left if "self_attn" in modules else n),
        "keys": (attention(block).to_k, left if shorter_keys & set(modules) else n),
        "values": (attention(block).to_v, left if {"self_attn", "keys"} & set(modules) else n),
        "mlp": (block.ff.net[0] if hasattr(block, "ff") else block.proj_mlp, left if "mlp" in modules else n),
    }
    text = PROMPT_TOKENS if site.text_first else 0
    expected = {name: (module, text + tokens) for name, (module, tokens) in expected.items()}
    if network not in JOINT and block.attn2 is not None:
        expected["text queries"] = (block.attn2.to_q, left if "cross_attn" in modules else n)
    seen = {}
    with compressor.applied_to(model), ExitStack() as handles:
        for name, (module, _) in expected.items():
            see = partial(lambda name, _, args: seen.update({name: args[0].shape[1]}), name)
            handles.enter_context(module.register_forward_pre_hook(see))
        forward(model, inputs(network, 2))
    assert seen == {name: tokens for name, (_, tokens) in expected.items()}


@every_method_and_architecture
def test_channels_last_computes_the_same(case, network):
    model, given = fresh(network), inputs(network)
    with build(case).applied_to(model):
        expected = forward(model, given)
        model.to(memory_format=torch.channels_last)
        actual = forward(model, given)
    # A near tie may merge another token: most numbers must agree, not all.
    assert ((actual - expected).abs() < 1e-4).float().mean() > 0.9
