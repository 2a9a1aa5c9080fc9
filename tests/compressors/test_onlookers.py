"""What onlookers of a compressor are shown, and that they change nothing."""

import torch
from cases import Seen, build, every_method
from models import LATENTS, forward, inputs, shared

from bigain.compressors import CoReDiT, ToDo, ToMA
from bigain.compressors.kv import KVDownsampler
from bigain.tokens.grid import Grid


@every_method
def test_onlookers_see_what_is_left_of_every_token_and_change_nothing(case, network):
    model, given = shared(network), inputs(network)
    compressor = build(case)
    onlooker = Seen()
    seen = onlooker.observations
    with compressor.applied_to(model):
        unseen = forward(model, given)
        compressor.onlookers.append(onlooker)
        assert torch.equal(forward(model, given), unseen)
        compressor.onlookers.clear()
        count = len(seen)
        forward(model, given)
        assert len(seen) == count
    modules = getattr(compressor, "modules", ("self_attn",))
    sites = compressor.sites_of(model)
    assert [(one.site.name, one.module) for one in seen] == [(site.name, name) for site in sites for name in modules]
    for one in seen:
        grid = one.site.grid(one.context.latent)
        assert one.before.shape == one.restored().shape == (3, grid.n, one.before.shape[2])
        assert one.context.timesteps.tolist() == [10, 400, 990]
        left = compressor.tokens_out(one.site, Grid(*LATENTS[network][1:]))
        if isinstance(compressor, (ToMA, CoReDiT)):
            # Restored tokens are weighted sums of what is left.
            assert torch.linalg.matrix_rank(one.restored()).max() <= left
            continue
        for row in one.restored():
            assert len(row.unique(dim=0)) < left if compressor.pads else len(row.unique(dim=0)) == left


def test_a_method_that_names_no_keys_is_shown_as_such():
    class FirstKeys(KVDownsampler):
        def downsample(self, x, site, context):
            return x[:, :5]

    compressor, onlooker = FirstKeys(ToDo(factor=2).where), Seen()
    with compressor.applied_to(shared("dit")):
        compressor.onlookers.append(onlooker)
        forward(shared("dit"), inputs("dit"))
    seen = onlooker.observations
    assert len(seen) == 5
    assert {one.restored() for one in seen} == {None}
