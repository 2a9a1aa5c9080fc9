"""ImportanceMerging: its plans against a loop, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from models import shared

from bigain.backbones import row_keys
from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import layout_of
from bigain.compressors import CAM, ImportanceMerging
from bigain.errors import InputError
from bigain.tokens.randomness import mix, random_bits

KEYS, N, SIDE = torch.tensor([3, 4]), 64, 8


def leaders(x, importance, draws, pool, removed):
    """Of one row, the token that stands for each token."""
    important = sorted(range(N), key=lambda i: -importance[i])[:pool]
    destinations = sorted(important, key=lambda i: -draws[i])[: N // 4]
    unit = torch.nn.functional.normalize(x, dim=1)
    best = {}
    for token in set(range(N)) - set(destinations):
        similar = {other: float(unit[token] @ unit[other]) for other in destinations}
        best[token] = max(similar, key=similar.get), max(similar.values())
    order = sorted(best, key=lambda token: (token in important, -best[token][1]))
    merged = {token: best[token][0] for token in order[:removed]}
    return [merged.get(token, token) for token in range(N)], set(merged), set(range(N)) - set(important)


@pytest.mark.parametrize(("ratio", "important", "removed"), [(0.5, 48, 32), (0.25, 56, 16)])
def test_plans_are_those_of_a_loop(ratio, important, removed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, 16, generator=generator, dtype=torch.float32)
    guidance = torch.rand(2, 2 * SIDE, 2 * SIDE, generator=generator, dtype=torch.float32)
    site, compressor = layout_of(shared("dit")).sites[1], ImportanceMerging(ratio=ratio, seed=7)
    with row_keys(KEYS, guidance=guidance):
        context = ForwardContext.of(torch.zeros(2, 4, 2 * SIDE, 2 * SIDE), 500, None)
    both = compressor.plan(x, site, context)
    # A patch of the latents is a token.
    tokens = guidance.unflatten(1, (SIDE, 2)).unflatten(3, (SIDE, 2)).mean((2, 4)).flatten(1)
    torch.testing.assert_close(compressor.token_scores(x, site, context), tokens)
    for row in range(2):
        draws = random_bits(mix(KEYS, 7, 1), N)[row].tolist()
        expected, merged, outside = leaders(x[row], tokens[row].tolist(), draws, important, removed)
        assert outside <= merged
        assert len(outside) == N - important
        assert set(both.removed[row].tolist()) == merged
        assert both.kept[row][both.restore[row]].tolist() == expected
    one = compressor.plan(x[1:], site, context.of_rows(torch.tensor([1])))
    assert torch.equal(one.restore[0], both.restore[1])


def test_what_is_refused():
    for compressor in (ImportanceMerging(ratio=0.5), CAM(inner=ImportanceMerging(ratio=0.5))):
        assert compressor.description()["generation_only"].startswith("it ranks tokens by the guidance")
        with pytest.raises(InputError, match="ImportanceMerging only generates: it ranks tokens by the guidance"):
            compressor.check_module(SimpleNamespace(generates=False))
        with pytest.raises(InputError, match="ranks tokens by guidance, and guidance: 1 is none"):
            compressor.check_module(SimpleNamespace(generates=True, guidance=1.0))
        compressor.check_module(SimpleNamespace(generates=True, guidance=4.0))
