"""Rows of an image are found by their keys, and maps hold what the forward decided."""

import pytest
import torch
from cases import Seen, build, every_method
from models import LATENTS, forward, inputs, shared

from bigain.backbones import DiT
from bigain.backbones.forward import ForwardContext, RowKeys, row_keys
from bigain.compressors import CAM, LGTM, AveragePool, FrequencyKV, ToDo
from bigain.compressors.kv import KVDownsampler
from bigain.data.selection import Item, first_of_classes
from bigain.diffusion.trials import trial_keys
from bigain.inspector.maps import Collector, arrays_of, evenly, matches, rows_of
from bigain.modules import DiffusionClassifier
from bigain.tokens.grid import Grid
from bigain.tokens.randomness import stable_hash
from bigain.tokens.scores import dft_centroid, laplacian_l1

ROWS = torch.arange(3)


def decisions(compressor, network):
    """All decisions of one forward."""
    onlooker = Seen()
    with compressor.applied_to(shared(network)):
        compressor.onlookers.append(onlooker)
        forward(shared(network), inputs(network))
    return onlooker.decisions


@every_method
def test_maps_hold_the_decisions(case, network):
    compressor = build(case)
    seen = decisions(compressor, network)
    assert [decision.site for decision in seen] == list(compressor.sites_of(shared(network)))
    rows = torch.tensor([2, 0])
    for decision in seen:
        grid = decision.site.grid(decision.context.latent)
        left = compressor.tokens_out(decision.site, Grid(*LATENTS[network][1:]))
        parts = arrays_of(decision, rows)
        assert parts["timesteps"].tolist() == [990, 10]
        torch.testing.assert_close(parts["salience"], laplacian_l1(decision.tokens, grid)[rows])
        if isinstance(compressor, KVDownsampler):
            assert decision.plan is None
            assert "copied" not in parts or parts["copied"].shape == (2, left)
            continue
        # The token that each place reads back, or reads most of, according to the plan itself: unit rows, unmerged.
        kept = decision.plan.kept
        row = decision.plan.unmerge(torch.eye(kept.shape[1]).expand(3, -1, -1)).argmax(2)
        assert torch.equal(parts["leader"], kept.gather(1, row)[rows])
        counts = [len(row.unique()) for row in parts["leader"]]
        assert all(count < left if compressor.pads else count == left for count in counts)


@pytest.mark.parametrize("compressor", [ToDo(factor=3), FrequencyKV(ratio=0.5, keep="high")], ids=["ToDo", "FKV"])
def test_keys_that_are_copies_are_known(compressor):
    decision = decisions(compressor, "unet")[0]
    copied = arrays_of(decision, ROWS)["copied"]
    keys = compressor.downsample(decision.tokens, decision.site, decision.context)
    assert torch.equal(decision.tokens.gather(1, copied[..., None].expand(-1, -1, keys.shape[2])), keys)


def test_keys_that_are_blends_are_not_copies():
    assert "copied" not in arrays_of(decisions(AveragePool(factor=2), "unet")[0], ROWS)


def test_scores_are_those_behind_the_decision():
    decision = decisions(LGTM(ratio=0.5, score=dft_centroid), "dit")[0]
    grid = decision.site.grid(decision.context.latent)
    assert torch.equal(arrays_of(decision, ROWS)["scores"], dft_centroid(decision.tokens, grid))
    assert "scores" not in arrays_of(decisions(LGTM(ratio=0.5, destination="random"), "dit")[0], ROWS)
    # Only the first site of a stage decides.
    scored = ["scores" in arrays_of(decision, ROWS) for decision in decisions(CAM(LGTM(ratio=0.5)), "dit")]
    assert scored == [True, False, False, False, False]


@pytest.mark.parametrize("compressor", [LGTM(ratio=0.5), ToDo(factor=2)], ids=["LGTM", "ToDo"])
def test_maps_are_collected_by_site_and_timestep(compressor):
    seen = decisions(compressor, "unet")
    keys = seen[0].context.keys
    sites = sorted({decision.site.index for decision in seen})[1:]
    collector = Collector({"a/b": RowKeys(keys[[2, 0]]), "c": RowKeys(keys[[1]])}, sites, torch.device("cpu"))
    for decision in seen:
        collector.add(decision)
    maps = collector.maps()
    assert [[site.index for site in maps[image_id]] for image_id in ("a/b", "c")] == [sites, sites]
    assert all(site.timesteps.tolist() == sorted(seen[0].context.timesteps[[2, 0]].tolist()) for site in maps["a/b"])


def test_evenly_includes_the_first_and_the_last():
    assert evenly(range(20), 5) == [0, 5, 10, 14, 19]
    assert [evenly([3, 7], count) for count in (8, 1)] == [[3, 7], [3]]


def test_a_classification_is_followed_in_the_true_class_at_trials_of_the_first_stage():
    module = DiffusionClassifier(DiT("shapes_dit"), trials=[5, 20], seed=3)
    rows = rows_of(module, Item("a", (7,)), 3)
    assert rows.classes.tolist() == [7, 7, 7]
    trials = torch.tensor([module.stages[0][i] for i in (0, 2, 4)])
    assert torch.equal(rows.keys, trial_keys(torch.tensor([stable_hash("a")]), trials, 3))
    assert rows_of(module, Item("a", ()), 8).classes.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("keys", "classes", "wanted", "expected"),
    [
        ([5, 5, 9, 9], [0, 1, 0, 1], RowKeys(torch.tensor([9, 4, 5]), torch.tensor([1, 1, 0])), ([3, 0], [0, 2])),
        ([1, 2], None, RowKeys(torch.tensor([3])), ([], [])),
        # Three guided pairs, the last one a copy: the row with its condition counts.
        ([7, 8, 8, 7, 8, 8], None, RowKeys(torch.tensor([7, 8])), ([3, 5], [0, 1])),
    ],
    ids=["classes", "absent", "guided"],
)
def test_rows_are_found_by_key_and_class(keys, classes, wanted, expected):
    with row_keys(torch.tensor(keys), None if classes is None else torch.tensor(classes)):
        context = ForwardContext.of(torch.zeros(len(keys), 4, 8, 8), 500, None)
    rows, positions = matches(context, wanted)
    assert (rows.tolist(), positions) == expected


def test_images_are_the_first_of_each_class_and_then_the_next():
    items = [Item(name, labels) for name, labels in zip("abcdef", [(0,), (0,), (2,), (), (1, 2), (1,)], strict=True)]
    assert [item.image_id for item in first_of_classes(items, 3)] == ["a", "c", "d"]
    # Following more images keeps the earlier ones.
    for count in range(10):
        assert first_of_classes(items, count) == first_of_classes(items, 9)[:count]
    assert set(first_of_classes(items, 9)) == set(items)
