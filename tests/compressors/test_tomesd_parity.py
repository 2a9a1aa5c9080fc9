"""ToMe(destination="first") against the published tomesd 0.1.3 with `use_rand=False`."""

import pytest
import tomesd
import torch
from models import forward, fresh, inputs, shared

from bigain.compressors import LGTM, ToMe, Where

TABLE_6 = [
    pytest.param(["self_attn"], {}, id="self"),
    pytest.param(["self_attn", "cross_attn"], {"merge_crossattn": True}, id="self-cross"),
    pytest.param(["self_attn", "cross_attn", "mlp"], {"merge_crossattn": True, "merge_mlp": True}, id="self-cross-mlp"),
    pytest.param(["cross_attn"], {"merge_attn": False, "merge_crossattn": True}, id="cross"),
    pytest.param(["mlp"], {"merge_attn": False, "merge_mlp": True}, id="mlp"),
]


def upstream(given, **options):
    """tomesd reads the latent size from the first positional argument."""
    model = tomesd.apply_patch(fresh("unet"), use_rand=False, **options)
    with torch.no_grad():
        return model(*given.values()).sample


def ours(given, kind=ToMe, **options):
    with kind(destination="first", **options).applied_to(shared("unet")) as model:
        return forward(model, given)


@pytest.mark.parametrize(("modules", "options"), TABLE_6)
@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_modules(modules, options, ratio):
    given = inputs("unet")
    expected = upstream(given, ratio=ratio, **options)
    torch.testing.assert_close(ours(given, ratio=ratio, modules=modules), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, forward(shared("unet"), given), atol=1e-3)


@pytest.mark.parametrize(
    ("ours_options", "options"),
    [
        ({"where": Where(max_stride=2)}, {"max_downsample": 2}),
        ({"cell": (2, 4)}, {"sy": 2, "sx": 4}),
        ({"cell": (4, 2)}, {"sy": 4, "sx": 2}),
    ],
)
def test_options(ours_options, options):
    given = inputs("unet", 2)
    expected = upstream(given, ratio=0.5, **options)
    torch.testing.assert_close(ours(given, ratio=0.5, **ours_options), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [(9, 13), (8, 9), (9, 8)])
def test_odd_latents(side):
    sample = torch.randn(1, 4, *side, generator=torch.Generator().manual_seed(0))
    given = {**inputs("unet", 1), "sample": sample}
    torch.testing.assert_close(ours(given, ratio=0.7), upstream(given, ratio=0.7), atol=1e-5, rtol=0)


def test_the_control_of_lgtm_is_the_same():
    given = inputs("unet")
    torch.testing.assert_close(ours(given, LGTM, ratio=0.5), upstream(given, ratio=0.5), atol=1e-5, rtol=0)
