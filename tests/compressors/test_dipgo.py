"""DiP-GO: its choice for a budget, what it skips, and `scripts/fit_dipgo.py`, which learns the scores."""

import importlib.util
import itertools
import random
from pathlib import Path

import pytest
import torch
from models import NETWORKS, forward, fresh, inputs, loaded, save_dit, shared, snapshot
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones import DiT
from bigain.backbones.geometry import without_weights
from bigain.backbones.sites import layout_of
from bigain.compressors import DiPGO
from bigain.compressors.dipgo import choose_kept
from bigain.compressors.structural import prunable, weights_digest, write_masks
from bigain.cost.flops import count_flops
from bigain.errors import InputError

SCRIPT = Path(__file__).parents[2] / "scripts/fit_dipgo.py"
BINS = 4


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("fit_dipgo", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def modules_of(model):
    return prunable(layout_of(model).sites)


def scores_file(path, model):
    """Random scores and equal costs."""
    names, generator = list(modules_of(model)), torch.Generator().manual_seed(0)
    tensors = {f"{name}.score": torch.rand(BINS, generator=generator) for name in names}
    tensors |= {f"{name}.cost": torch.tensor(0.5 / len(names)) for name in names}
    write_masks(path, tensors, {"method": "DiPGO", "weights_sha256": weights_digest(model)})
    return str(path)


def test_the_choice_is_that_of_an_exhaustive_search():
    seeds = random.Random(0)
    for _ in range(5):
        costs = torch.tensor([seeds.randint(50, 300) / 1000 for _ in range(3)])
        scores = torch.rand(3, BINS, generator=torch.Generator().manual_seed(seeds.randint(0, 99)))
        ratio = float(costs.sum()) * seeds.uniform(0.2, 0.8)
        shares, losses = costs.repeat_interleave(BINS) / BINS, (scores * costs[:, None]).flatten() / BINS
        subsets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3 * BINS)))
        saved, lost = subsets @ shares, subsets @ losses
        skipped = (~choose_kept(scores, costs, ratio)).flatten().float()
        mine, loss = float(skipped @ shares), float(skipped @ losses)
        # The choice rounds what is saved to 1 / 20000.
        inner = (saved >= ratio * 1.0005) & (saved <= ratio * 1.0045)
        outer = (saved >= ratio * 0.9995) & (saved <= ratio * 1.0055)
        if inner.any():
            assert float(lost[outer].min()) - 1e-6 <= loss <= float(lost[inner].min()) + 1e-6
            assert ratio * 0.9995 <= mine <= ratio * 1.0055
        else:
            assert abs(mine - ratio) <= float((saved - ratio).abs().min()) + 1e-4


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.4])
def test_many_blocks_meet_the_budget(ratio):
    generator = torch.Generator().manual_seed(0)
    costs, scores = torch.rand(12, generator=generator) / 13, torch.rand(12, 20, generator=generator)
    kept = choose_kept(scores, costs, ratio)
    assert ratio * 0.9995 <= float((costs[:, None] * ~kept).sum() / 20) <= ratio * 1.0055
    # What is skipped scores lower.
    assert scores[~kept].mean() < scores[kept].mean()


def test_many_modules_of_equal_cost_do_not_add_up_their_rounding():
    """The smallest cost 10.5 steps of the first resolution each, and matter least."""
    costs = torch.tensor([0.1] * 4 + [0.00105] * 44)
    scores = torch.rand(48, 20, generator=torch.Generator().manual_seed(0)) * (costs[:, None] > 0.01)
    kept = choose_kept(scores, costs, 0.1)
    assert 0.1 * 0.9995 <= float((costs[:, None] * ~kept).sum() / 20) <= 0.1 * 1.0055


@pytest.mark.parametrize("network", NETWORKS)
def test_skips_what_it_says(network, tmp_path):
    """Against a network whose skipped modules return zeros."""
    model, given = shared(network), inputs(network, 2)
    pruner = DiPGO(ratio=0.15, masks=scores_file(tmp_path / "gates.safetensors", model), bins=BINS)
    before, untouched = snapshot(model), forward(model, given)
    kept = pruner.masks_of(model)
    assert {bool(keeps) for of_module in kept.values() for keeps in of_module} == {True, False}
    for stage, timestep in ((1, 250), (3, 999)):
        plain, call = fresh(network), given | {"timestep": torch.full((2,), timestep)}
        skipped = {name for name in kept if not kept[name][stage]}
        for name in skipped:
            modules_of(plain)[name].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        expected = forward(plain, call)
        with pruner.applied_to(model), FlopCounterMode(display=False) as counter:
            assert torch.equal(forward(model, call), expected)
        counts = counter.get_flop_counts()
        assert {name for name in kept if f"{type(model).__name__}.{name}" not in counts} == skipped
    assert snapshot(model) == before
    assert torch.equal(forward(model, given), untouched)


def test_refusals(tmp_path):
    model = shared("dit")
    file = scores_file(tmp_path / "gates.safetensors", model)
    with pytest.raises(InputError, match="other weights"):
        DiPGO(ratio=0.1, masks=file, bins=BINS).install(fresh("unet"))
    with pytest.raises(InputError, match="scores of 4 bins, not of 20"):
        DiPGO(ratio=0.1, masks=file).install(model)
    with pytest.raises(InputError, match=r"ratio must be at most 0\.\d+, which attentions and MLPs cost"):
        DiPGO(ratio=0.999, masks=file, bins=BINS).install(model)
    missing = str(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"none\.safetensors; make them with scripts/fit_dipgo\.py"):
        DiPGO(ratio=0.1, masks=missing).install(model)
    for wrong in ({"ratio": 0.0}, {"ratio": 1.0}, {"ratio": 0.1, "bins": 51}):
        with pytest.raises(InputError, match="above 0 and below 1, and bins 2 to 50"):
            DiPGO(masks=file, **wrong)


@pytest.fixture
def fit_of(script, tmp_path):
    backbone = loaded(DiT, save_dit(tmp_path / "model", vae=False))
    pruner = DiPGO(ratio=0.1, masks="none", bins=BINS)
    shape, conditions = backbone.latent_shape, backbone.conditions([""] * 3, [0, 1, 2])
    samples = script.sample_latents(backbone, conditions, shape, 0)
    costs = script.costs_of(backbone, pruner, shape, conditions[:1])

    def build(seed=0, parts=1):
        torch.manual_seed(seed)
        # Without the hooks of another fit.
        backbone.denoiser = loaded(DiT, tmp_path / "model").denoiser
        settings = {"seed": seed, "learning_rate": 0.05, "parts": parts}
        return script.GateFit(backbone, pruner, settings, samples=samples, conditions=conditions, costs=costs)

    return build


def test_costs_are_what_skipping_saves(fit_of):
    fit = fit_of()
    twin = without_weights(fit.backbone)
    condition = fit.conditions[:1]
    whole = count_flops(twin, twin.latent_shape, condition).total
    names = list(modules_of(twin.denoiser))
    assert len(fit.costs) == len(names) == 10
    for i in (2, 7):
        module = modules_of(twin.denoiser)[names[i]]
        module.forward = lambda x, *args, **kwargs: torch.zeros_like(x)
        left = count_flops(twin, twin.latent_shape, condition).total
        del module.forward
        assert float(fit.costs[i]) == pytest.approx(1 - left / whole)


def test_gates_of_one_change_nothing_and_gradients_reach_the_scores(fit_of):
    fit = fit_of()
    keys = torch.arange(BINS)
    ones = torch.ones(len(fit.costs), BINS, requires_grad=True)
    assert not fit.inconsistency(keys, keys, ones).any()
    gates = torch.full_like(ones, 0.8, requires_grad=True)
    changes = fit.inconsistency(keys, keys, gates)
    assert changes.gt(0).all()
    # A row depends on the gates of its bin alone.
    (gradient,) = torch.autograd.grad(changes[1], gates)
    assert gradient[:, 1].abs().gt(0).all()
    assert not gradient[:, [0, 2, 3]].any()
    consistency = fit.inconsistency(keys, keys, fit.pruner()).mean()
    consistency.backward()
    assert fit.pruner.queries.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in fit.backbone.parameters())


def test_a_resumed_fit_equals_an_uninterrupted_one(fit_of, script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_CHECKPOINT_EVERY", 2)
    first = fit_of().pruner().detach()
    whole = script.fit_scores(fit_of(), 4, tmp_path / "whole.ckpt")
    script.fit_scores(fit_of(), 2, tmp_path / "parts.ckpt")
    # Other initial weights, which the checkpoint replaces.
    fit = fit_of()
    torch.nn.init.zeros_(fit.pruner.queries)
    resumed = script.fit_scores(fit, 4, tmp_path / "parts.ckpt")
    assert torch.equal(resumed, whole)
    assert not torch.equal(whole, first)
    # Smaller forwards learn the same.
    assert torch.allclose(script.fit_scores(fit_of(parts=2), 4, tmp_path / "small.ckpt"), whole, atol=1e-4)
    with pytest.raises(InputError, match="begun with"):
        script.fit_scores(fit_of(seed=1), 4, tmp_path / "parts.ckpt")
