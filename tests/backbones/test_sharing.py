"""What rows have in common is computed once, and nothing else changes."""

import pytest
import torch
from cases import CASES, build
from models import PROMPT_TOKENS, WIDTH, forward, fresh, snapshot, tiny_unet

from bigain.backbones import row_keys
from bigain.backbones import sharing as sharing_module
from bigain.backbones.forward import pair_sharing
from bigain.backbones.sharing import share
from bigain.backbones.sites import layout_of
from bigain.compressors import LGTM, ToMe
from bigain.diffusion.trials import trial_noise

CPU = torch.device("cpu")
CLASSES = 5


@pytest.fixture(scope="module")
def conditions():
    return torch.randn(CLASSES, PROMPT_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def rows_of(conditions, first=3, n=8):
    """Arguments of a forward that holds rows of several pairs of `CLASSES` classes, and what names them."""
    row = torch.arange(first, first + n)
    pair, label = row // CLASSES, row % CLASSES
    keys = pair + 100
    given = {
        "sample": trial_noise(keys, (4, 8, 12)),
        "timestep": pair * 300 + 50,
        "encoder_hidden_states": conditions[label],
    }
    return given, (keys, label, pair_sharing(n, first, first + n - 1, CLASSES, CPU))


def rows_seen(module):
    seen = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append(len(output)), prepend=True)
    return seen, handle


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("rows", [1, 2, 8, 64])
def test_groups_of_a_forward(rows, size):
    counts = set()
    for first in range(2 * size):
        for last in {first, first + rows // 2, first + rows - 1}:
            sharing = pair_sharing(rows, first, last, size, CPU)
            counts.add(None if sharing is None else len(sharing.first))
            if sharing is None:
                continue
            group = torch.arange(first, first + rows).clamp(max=last) // size
            # The row that stands for a row belongs to its group, and is one of the forward.
            assert torch.equal(group[sharing.first][sharing.group], group)
            assert int(sharing.first.max()) <= last - first
    # However a forward lies, as many are computed.
    assert len(counts) == 1
    assert (counts == {None}) == (size == 1 or (rows <= 2 and size >= 1))


@pytest.mark.parametrize("case", [None, *CASES], ids=lambda case: "none" if case is None else case["class"].__name__)
def test_shared_rows_compute_the_same(case, conditions):
    model = fresh("unet")
    given, named = rows_of(conditions)
    installed = None if case is None else build(case).install(model)
    with row_keys(*named[:2]):
        expected = forward(model, given)
    with share(model, conditions), row_keys(*named):
        actual = forward(model, given)
    if installed is not None:
        installed.close()
    # A near tie may merge another token: most numbers must agree, not all.
    assert ((actual - expected).abs() < 1e-4).float().mean() > 0.9
    assert (actual - expected).abs().median() < 1e-5


def test_the_prefix_runs_once_per_group(conditions):
    model = fresh("unet")
    site = layout_of(model).sites[0]
    given, named = rows_of(conditions)
    with LGTM(ratio=0.5).applied_to(model), share(model, conditions), row_keys(*named):
        watched = [rows_seen(part) for part in (model.conv_in, site.block.attn1.to_q, site.block.attn2.to_q)]
        keys, handle = rows_seen(site.block.attn2.to_k)
        forward(model, given)
    assert [seen for seen, _ in watched] == [[3], [3], [8]]
    # Nothing is left to do for keys of prompts; they were computed apart.
    assert keys == [0]
    for other in [handle, *(handle for _, handle in watched)]:
        other.remove()


@pytest.mark.parametrize("compressor", [ToMe(ratio=0.5, destination="redrawn"), LGTM(ratio=0.5, destination="redrawn")])
def test_tables_redrawn_per_class_are_not_shared(compressor, conditions):
    model = fresh("unet")
    block = layout_of(model).sites[0].block
    given, named = rows_of(conditions)
    with compressor.applied_to(model), row_keys(*named[:2]):
        expected = forward(model, given)
    with compressor.applied_to(model), share(model), row_keys(*named):
        attention, handle = rows_seen(block.attn1)
        actual = forward(model, given)
        handle.remove()
    assert attention == [8]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_unnamed_rows_and_closing_change_nothing(conditions):
    model = fresh("unet")
    given, named = rows_of(conditions)
    before, expected = snapshot(model), forward(model, given)
    with share(model, conditions):
        assert torch.equal(forward(model, given), expected)
        with row_keys(*named):
            forward(model, given)
    assert snapshot(model) == before
    with row_keys(*named):
        assert torch.equal(forward(model, given), expected)


def test_keys_of_prompts_follow_the_precision_of_the_forward(conditions):
    model = fresh("unet").to(torch.bfloat16)
    given, named = rows_of(conditions)
    half = {name: value if name == "timestep" else value.to(torch.bfloat16) for name, value in given.items()}
    with share(model, conditions), row_keys(*named):
        assert forward(model, half).dtype == torch.bfloat16


def test_keys_of_very_many_prompts_are_not_kept(conditions, monkeypatch):
    model = fresh("unet")
    layers = [site.block.attn2.to_k for site in layout_of(model).sites]
    size = CLASSES * PROMPT_TOKENS * 2 * sum(layer.out_features for layer in layers) * 4
    for room, hooks in ((size, 1), (size - 1, 0)):
        monkeypatch.setattr(sharing_module, "_MAX_CACHE_BYTES", room)
        with share(model, conditions):
            assert {len(layer._forward_hooks) for layer in layers} == {hooks}


def test_what_is_before_the_first_condition():
    """A second condition enters with the timestep, before everything; a DiT's enters in its first block."""
    without_attention = tiny_unet(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"))
    networks = (fresh("dit"), tiny_unet(num_class_embeds=3), without_attention)
    assert [len(layout_of(network).prefix) for network in networks] == [0, 0, 2]
    assert not any(site.unconditional for site in layout_of(without_attention).sites)


def test_layers_with_hooks_of_others_are_left_alone(conditions):
    model = fresh("unet")
    given, named = rows_of(conditions)
    for site in layout_of(model).sites:
        site.block.attn2.to_k.register_forward_hook(lambda _, args, output: output * 1.2)
        site.block.attn2.to_v.register_forward_pre_hook(lambda _, args: (args[0] * 0.9,))
    with row_keys(*named[:2]):
        expected = forward(model, given)
    with share(model, conditions), row_keys(*named):
        actual = forward(model, given)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
