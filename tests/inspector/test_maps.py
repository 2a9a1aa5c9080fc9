"""What is kept of a decision is what the forward decided, for every compressor; it survives the disk."""

import numpy as np
import pytest
import torch
from cases import Seen, build, every_case
from models import LATENTS, forward, inputs, shared

from bigain.compressors import CAM, LGTM, AveragePool, FrequencyKV, ToDo
from bigain.compressors.kv import KVDownsampler
from bigain.inspector.maps import Collected, parts_of, read_maps, write_maps
from bigain.tokens.grid import Grid
from bigain.tokens.scores import dft_centroid, laplacian_l1


def decisions(compressor, network):
    """All decisions of one forward, and its output."""
    onlooker = Seen()
    seen = onlooker.decisions
    with compressor.applied_to(shared(network)):
        unseen = forward(shared(network), inputs(network))
        compressor.onlookers.append(onlooker)
        assert torch.equal(forward(shared(network), inputs(network)), unseen)
        compressor.onlookers.clear()
        count = len(seen)
        forward(shared(network), inputs(network))
        assert len(seen) == count
    return seen


@every_case
def test_onlookers_see_every_decision_and_changes_nothing(case, network):
    compressor = build(case)
    seen = decisions(compressor, network)
    assert [one.site for one in seen] == list(compressor.sites_of(shared(network)))
    rows = torch.tensor([2, 0])
    for one in seen:
        n = one.site.grid(one.context.latent).n
        left = compressor.tokens_out(one.site, Grid(*LATENTS[network][1:]))
        parts = parts_of(one, rows)
        assert parts["timesteps"].tolist() == [990, 10]
        torch.testing.assert_close(parts["salience"], laplacian_l1(one.tokens, one.site.grid(one.context.latent))[rows])
        if isinstance(compressor, KVDownsampler):
            assert parts["keys"].shape == (2, n)
            assert parts["keys"].max() == left - 1
            assert one.plan is None
            continue
        # The token that a place reads back, said by the plan itself: merged ids of kept tokens, unmerged.
        ids = torch.arange(n).expand(3, n)
        wanted = one.plan.unmerge(ids.gather(1, one.plan.kept)[..., None])[..., 0][rows]
        assert torch.equal(parts["leader"], wanted)
        assert all(len(row.unique()) == left for row in parts["leader"])


def test_keys_that_are_copies_are_named_and_blends_are_not():
    for compressor in (ToDo(factor=3), FrequencyKV(ratio=0.5, keep="high")):
        one = decisions(compressor, "unet")[0]
        copied = parts_of(one, torch.arange(3))["copied"]
        keys = compressor.downsample(one.tokens, one.site, one.context)
        assert torch.equal(one.tokens.gather(1, copied[..., None].expand(-1, -1, keys.shape[2])), keys)
    average = AveragePool(factor=2)
    assert "copied" not in parts_of(decisions(average, "unet")[0], torch.arange(3))


def test_scores_are_those_that_decided():
    lgtm = LGTM(ratio=0.5, score=dft_centroid)
    one = decisions(lgtm, "dit")[0]
    grid = one.site.grid(one.context.latent)
    assert torch.equal(parts_of(one, torch.arange(3))["scores"], dft_centroid(one.tokens, grid))
    control = LGTM(ratio=0.5, destination="random")
    assert "scores" not in parts_of(decisions(control, "dit")[0], torch.arange(3))
    # Later sites of a stage decide nothing of their own.
    cam = CAM(LGTM(ratio=0.5))
    scored = ["scores" in parts_of(one, torch.arange(3)) for one in decisions(cam, "dit")]
    assert scored == [True, False, False, False, False]


def collected(compressor, network="unet"):
    found = Collected()
    for one in decisions(compressor, network):
        rows = torch.tensor([0, 1, 2])
        found.add(one, parts_of(one, rows), [(4, 1), (2, 0), (4, 0)])
    return found


def test_maps_of_an_image_are_in_the_order_of_sites_and_timesteps():
    maps = collected(LGTM(ratio=0.5)).of_image(4)
    sites = {one.site.index for one in decisions(LGTM(ratio=0.5), "unet")}
    assert [one.index for one in maps] == sorted(sites)
    assert all(one.timesteps.tolist() == [10, 990] for one in maps)
    assert all(one.leader.shape == one.scores.shape == (2, 96) for one in maps)
    assert collected(LGTM(ratio=0.5)).of_image(9) == []


@pytest.mark.parametrize("compressor", [LGTM(ratio=0.5), ToDo(factor=2)], ids=["LGTM", "ToDo"])
def test_maps_read_back_as_they_were(tmp_path, compressor):
    maps = collected(compressor).of_image(4)
    file = tmp_path / "pictures/maps_0.npz"
    write_maps(file, "a/b", maps)
    for one, other in zip(maps, read_maps(file, "a/b"), strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, vars(other)[name])
            else:
                assert value == vars(other)[name]


def test_maps_of_another_image_or_damaged_ones_are_none(tmp_path):
    file = tmp_path / "maps_0.npz"
    assert read_maps(file, "a") is None
    write_maps(file, "a", collected(LGTM(ratio=0.5)).of_image(4))
    assert read_maps(file, "b") is None
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no archive"):
        file.write_bytes(damaged)
        assert read_maps(file, "a") is None
