"""Attention over text and image, written out: the text is never touched, and rotary embeddings keep their places."""

import math

import pytest
import torch
from models import JOINT, attention, forward, fresh, inputs, shared, tiny_sd3, watch
from torch.nn.functional import one_hot

from bigain.backbones.flux import image_ids
from bigain.backbones.sites import layout_of
from bigain.compressors import IEKVD, LGTM, FrequencyKV, ToDo, ToMe
from bigain.errors import InputError
from bigain.tokens.grid import Grid
from bigain.tokens.scores import laplacian_l1

GRID = Grid(8, 12)
every_joint_network = pytest.mark.parametrize("network", JOINT)


@every_joint_network
def test_merging_tokens_that_are_pairwise_equal_changes_nothing(network):
    """Neighbours of equal content and position. There is no text, whose share of the attention merging raises."""
    model, given = fresh(network), inputs(network)
    given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :0]
    if network == "sd3":
        model.pos_embed.pos_embed.zero_()
        maps = given["hidden_states"].view(3, 4, 16, 6, 4)
        given["hidden_states"] = maps[..., :2].repeat(1, 1, 1, 1, 2).flatten(3)
    else:
        given["hidden_states"] = given["hidden_states"][:, ::2].repeat_interleave(2, 1)
        given["txt_ids"] = given["txt_ids"][:0]
        given["img_ids"] = given["img_ids"][::2].repeat_interleave(2, 0)
        given["img_ids"].bigain_grid = GRID
    plain = forward(model, given)
    for modules in (["self_attn"], ["self_attn", "mlp"]):
        with ToMe(ratio=0.5, cell=[1, 2], destination="first", modules=modules).applied_to(model):
            keys = attention(layout_of(model).sites[0].block).to_k
            seen = watch(model, given, keys=keys)
            output = forward(model, given)
        assert seen["keys"].x.shape[1] == 48
        torch.testing.assert_close(output, plain, atol=1e-5, rtol=0)


def turn(x, positions):
    """Rotate pairs of channels of `(b, n, heads, d)` by angles from (0, y, x), `(b, n, 3)`, as complex numbers."""
    angles, widths = [], (2, 2, 4)
    for axis, width in enumerate(widths):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
        angles.append(positions[..., axis, None].double() * frequencies)
    angle = torch.cat(angles, -1)[:, :, None]
    turned = torch.view_as_complex(x.double().unflatten(3, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(3).float()


def attention_by_hand(network, attn, image, text, places, keys=None, values=None):
    """Attention over text, if there is any, and image tokens, of which a matrix may shorten the keys and the values.

    Keys are shortened after norm and rotation. Returns what the image's queries read, and what the text's do.
    """
    own = [getattr(attn, name) for name in ("to_q", "to_k", "to_v", "norm_q", "norm_k")]
    added = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")
    added = [getattr(attn, name, None) for name in added]
    parts = []
    # The text of a single block of FLUX has the same projections as the image.
    for x, layers, at in ((text, added if added[0] is not None else own, torch.zeros(1, 1, 3)), (image, own, places)):
        if x is None:
            continue
        q, k, v = (layer(x).unflatten(2, (attn.heads, -1)) for layer in layers[:3])
        q, k = (norm(y) if norm is not None else y for norm, y in zip(layers[3:], (q, k), strict=True))
        if network == "flux":
            q, k = turn(q, at), turn(k, at)
        if x is image:
            k = k if keys is None else (keys @ k.flatten(2)).view(len(k), -1, *k.shape[2:])
            v = v if values is None else (values @ v.flatten(2)).view(len(v), -1, *v.shape[2:])
        parts.append((q, k, v))
    q, k, v = (torch.cat(part, 1).transpose(1, 2) for part in zip(*parts, strict=True))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(3)
    output = (weights @ v).transpose(1, 2).flatten(2)
    of_text, of_image = output.split((output.shape[1] - image.shape[1], image.shape[1]), 1)
    if hasattr(attn, "to_out"):
        of_image = attn.to_out[0](of_image)
    if getattr(attn, "to_add_out", None) is not None:
        of_text = attn.to_add_out(of_text)
    return of_image, of_text


def streams(seen, site):
    """Image and text tokens that an attention took and returned."""
    x, text = seen.x, seen.kwargs.get("encoder_hidden_states")
    out = seen.output
    if site.text_first:
        t = x.shape[1] - GRID.n
        return x[:, t:], x[:, :t], out[:, t:], out[:, :t]
    return x, text, *(out if isinstance(out, tuple) else (out, None))


def matrix_of(compressor, x):
    """`D`; that it is the method's, other tests show."""
    if isinstance(compressor, IEKVD):
        return compressor.resample(torch.eye(GRID.n)[None], GRID, None)[0]
    kept = laplacian_l1(x, GRID).argsort(dim=1, descending=True, stable=True)[:, : GRID.n // 4].sort(1).values
    return one_hot(kept, GRID.n).float()


# The network, a block and one of its attentions: with text, a second one without, in a single block.
ATTENTIONS = [("sd3", 2, "attn"), ("sd3", 1, "attn"), ("sd3", 1, "attn2"), ("flux", 1, "attn"), ("flux", 3, "attn")]
every_attention = pytest.mark.parametrize(("network", "index", "name"), ATTENTIONS)
PLACES = image_ids(GRID, torch.device("cpu"))


@every_attention
@pytest.mark.parametrize("position", ["destination", "mean"])
def test_merging_equals_the_formula(network, index, name, position):
    if network == "sd3" and position == "mean":
        with pytest.raises(InputError, match="position is mean, but SD3Transformer2DModel has no rotary embeddings"):
            ToMe(ratio=0.5, position=position).install(shared(network))
        return
    model, plans = shared(network), {}
    site = layout_of(model).sites[index]

    class Watched(LGTM):
        def plan(self, x, site, context):
            plans[site.index] = super().plan(x, site, context)
            return plans[site.index]

    attn = getattr(site.block, name)
    # Seen before the compressor's hooks on the input, and after those on the output.
    inside = {}
    before = attn.register_forward_pre_hook(lambda _, args, kwargs: inside.update(kwargs), with_kwargs=True)
    with before, Watched(ratio=0.5, position=position).applied_to(model):
        seen = watch(model, inputs(network, 2), attn=attn)["attn"]
    seen = seen._replace(x=inside["hidden_states"])
    image, text, output, text_output = streams(seen, site)
    unmerge = one_hot(plans[index].restore).float()
    merge = (unmerge / unmerge.sum(1, keepdim=True)).transpose(1, 2)
    places = merge @ PLACES if position == "mean" else PLACES[plans[index].kept]
    expected, of_text = attention_by_hand(network, attn, merge @ image, text, places)
    torch.testing.assert_close(output, unmerge @ expected, atol=1e-5, rtol=0)
    if text_output is not None:
        torch.testing.assert_close(text_output, of_text, atol=1e-5, rtol=0)


@every_attention
@pytest.mark.parametrize("compressor", [IEKVD(factor=2), FrequencyKV(ratio=0.75, keep="high")])
def test_downsampling_equals_the_formula(network, index, name, compressor):
    """`D(K)` after norm and rotation, and `D(V)` after the projection."""
    model = shared(network)
    site = layout_of(model).sites[index]
    attn = getattr(site.block, name)
    with compressor.applied_to(model):
        seen = watch(model, inputs(network, 2), attn=attn, values=attn.to_v)
    image, text, output, text_output = streams(seen["attn"], site)
    short = matrix_of(compressor, image)
    assert seen["values"].x.shape[1] == short.shape[-2] + (text.shape[1] if site.text_first else 0)
    expected, of_text = attention_by_hand(network, attn, image, text, PLACES[None], short, short)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    if text_output is not None:
        torch.testing.assert_close(text_output, of_text, atol=1e-5, rtol=0)


def test_keys_of_sd_3_are_downsampled_before_their_projection():
    """Nothing follows the projection there."""
    model = tiny_sd3(qk_norm=None, dual_attention_layers=())
    site = layout_of(model).sites[0]
    with IEKVD(factor=2).applied_to(model):
        seen = watch(model, inputs("sd3", 2), attn=site.block.attn, keys=site.block.attn.to_k)
    assert seen["keys"].x.shape[1] == 24
    image, text, output, _ = streams(seen["attn"], site)
    down = matrix_of(IEKVD(factor=2), image)
    expected, _ = attention_by_hand("sd3", site.block.attn, image, text, None, down, down)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


class Own:
    """An attention processor of a user."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        options = {} if image_rotary_emb is None else {"image_rotary_emb": image_rotary_emb}
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **options)


def test_processors_of_users_stay_where_hooks_suffice():
    model, given = fresh("sd3"), inputs("sd3")
    with LGTM(ratio=0.5).applied_to(model):
        expected = forward(model, given)
        model.set_attn_processor(Own(model.transformer_blocks[0].attn.processor))
        assert torch.equal(forward(model, given), expected)
    assert {type(processor) for processor in model.attn_processors.values()} == {Own}
    with pytest.raises(
        InputError, match=r"transformer_blocks\.0 computes attention with Own; .* JointAttnProcessor2_0 only"
    ):
        ToDo(factor=2).install(model)


@pytest.mark.parametrize("compressor", [ToMe(ratio=0.5), ToDo(factor=2)])
def test_unknown_processors_are_refused_where_positions_rotate(compressor):
    model = fresh("flux")
    with compressor.applied_to(model):
        model.set_attn_processor(Own(model.transformer_blocks[0].attn.processor))
        with pytest.raises(InputError, match=r"computes attention with Own; .* FluxAttnProcessor only"):
            forward(model, inputs("flux"))
    with pytest.raises(InputError, match="computes attention with Own"):
        compressor.install(model)
    with ToMe(ratio=0.5, modules=["mlp"]).applied_to(model):
        forward(model, inputs("flux"))


def test_fused_projections_are_refused():
    model = fresh("flux")
    model.fuse_qkv_projections()
    with pytest.raises(InputError, match="has fused QKV projections"):
        ToDo(factor=2).install(model)


def test_the_size_of_a_map_is_read_from_the_positions_of_tokens():
    model, given = shared("flux"), inputs("flux")
    with LGTM(ratio=0.5).applied_to(model):
        expected = forward(model, given)
        ids = PLACES.clone()
        assert torch.equal(forward(model, {**given, "img_ids": ids}), expected)
        with pytest.raises(InputError, match="img_ids are not those of one image"):
            forward(model, {**given, "img_ids": ids.flip(0)})
