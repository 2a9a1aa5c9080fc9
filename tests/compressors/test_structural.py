"""Pruners: masks by optimal brain surgeon, files with a card, stages, and the network that is left."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from cases import Halved
from models import forward, fresh, inputs, loaded, rows, shared, snapshot
from safetensors import safe_open

from bigain.backbones import DiT, row_keys
from bigain.backbones.sites import layout_of
from bigain.commands.flops.model import CountedModel
from bigain.compressors import MosaicDiff, Where
from bigain.compressors.mosaicdiff import DAMPING, output_of, prune
from bigain.compressors.structural import prunable, weights_digest, write_masks
from bigain.data.shapes import render_shapes
from bigain.errors import InputError

# Of the tiny networks, with two heads per attention or one.
SETTINGS = {"ratio": 0.5, "middle": 0.4}


def masked(network):
    """Random masks of a network for `SETTINGS`: their file's content."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    pruner, denoiser = MosaicDiff(**SETTINGS), shared(network)
    for name, module in prunable(layout_of(denoiser).sites).items():
        output, size = output_of(name, module)
        units = output.in_features // size
        for stage, removed in enumerate(pruner.removed(units)):
            kept = torch.randperm(units, generator=generator)[removed:].sort().values
            weight = torch.randn(output.out_features, len(kept) * size, generator=generator) / 4
            if removed:
                tensors |= {f"{name}.kept.{stage}": kept, f"{name}.weight.{stage}": weight.half()}
    return tensors, {"method": "MosaicDiff", "weights_sha256": weights_digest(denoiser)}


def dense(network, masks, stage):
    """The network of full size whose removed heads and channels meet weights of zero."""
    model = fresh(network)
    for name, module in prunable(layout_of(model).sites).items():
        if f"{name}.kept.{stage}" in masks:
            output, size = output_of(name, module)
            full = torch.zeros(output.out_features, output.in_features // size, size)
            kept, weight = (masks[f"{name}.{part}.{stage}"] for part in ("kept", "weight"))
            full[:, kept] = weight.float().view(len(full), -1, size)
            output.weight.data = full.flatten(1)
    return model


@pytest.fixture(params=["dit", "unet", "pixart", "sdxl"])
def made(request, tmp_path):
    (masks, card), path = masked(request.param), tmp_path / "masks/of.safetensors"
    write_masks(path, masks, card)
    return request.param, masks, str(path)


def test_a_forward_is_that_of_the_masked_dense_network_of_its_stage(made):
    network, masks, path = made
    model, given = shared(network), inputs(network)
    plain, before = forward(model, given), snapshot(model)
    with MosaicDiff(**SETTINGS, masks=path).applied_to(model):
        # Rows at timesteps 10, 400 and 990, one of each stage.
        for stage in range(3):
            alone = rows(given, slice(stage, stage + 1))
            pruned = forward(model, alone)
            expected = forward(dense(network, masks, stage), alone)
            assert torch.allclose(pruned, expected, atol=1e-5)
            assert not torch.allclose(pruned, plain[stage : stage + 1], atol=1e-3)
            with row_keys(torch.zeros(1, dtype=torch.int64), timestep=(10, 400, 990)[stage]):
                assert torch.equal(forward(model, alone), pruned)
        with pytest.raises(InputError, match="values for the timesteps"):
            forward(model, given)
    assert torch.equal(forward(model, given), plain)
    assert snapshot(model) == before


def test_what_is_left_follows_the_network_of_which_it_is_no_part(tmp_path):
    (masks, card), path = masked("dit"), tmp_path / "masks.safetensors"
    write_masks(path, masks, card)
    model, given = fresh("dit"), rows(inputs("dit"), slice(1))
    with MosaicDiff(**SETTINGS, masks=str(path)).applied_to(model):
        single, digest = forward(model, given), weights_digest(model)
        double = forward(model.double(), {**given, "hidden_states": given["hidden_states"].double()})
        assert double.dtype == torch.float64
        assert torch.allclose(double.float(), single, atol=1e-5)
        assert weights_digest(model) == digest == card["weights_sha256"]


def test_masks_are_those_of_a_loop_that_refits_every_candidate():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator).double() @ torch.randn(12, 12, generator=generator).double()
    weight, moments = torch.randn(5, 12, generator=generator).double(), x.mT @ x
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(12)

    def refit(groups, size):
        """Weights of some groups whose outputs are nearest to those of all, and the squared difference."""
        columns = [group * size + i for group in groups for i in range(size)]
        fitted = torch.linalg.solve(damped[columns][:, columns], damped[columns] @ weight.mT).mT
        difference = weight.clone()
        difference[:, columns] -= fitted
        return (difference @ damped @ difference.mT).trace(), fitted

    for size, removed in ((1, 5), (3, 2)):
        alive = list(range(12 // size))
        for _ in range(removed):
            losses = {group: refit([other for other in alive if other != group], size)[0] for group in alive}
            alive.remove(min(losses, key=losses.get))
        kept, fitted = prune(weight, moments, size, removed)
        assert kept.tolist() == alive
        assert torch.allclose(fitted, refit(alive, size)[1])


def test_other_weights_settings_and_files_are_refused(tmp_path):
    path = tmp_path / "masks.safetensors"

    def refusal(**settings):
        model = fresh("dit")
        if settings.pop("changed", False):
            next(model.parameters()).data[0] += 0.01
        before = snapshot(model)
        with pytest.raises(InputError) as caught:
            MosaicDiff(**{**SETTINGS, "masks": str(path), **settings}).install(model)
        assert snapshot(model) == before
        return str(caught.value)

    assert f"no masks at {path}; make them with scripts/calibrate_mosaicdiff.py (see --help)" in refusal()
    assert "no masks at None" in refusal(masks=None)
    path.write_bytes(b"no masks")
    assert "is no file of masks" in refusal()
    masks, card = masked("dit")
    write_masks(path, masks, card)
    assert "was made for other weights: SHA-256" in refusal(changed=True)
    assert "was made for other settings: in stage 0 it keeps 32 of 64" in refusal(ratio=0.6)
    write_masks(path, masks, {**card, "method": "DiPGO"})
    assert "holds masks of DiPGO" in refusal()
    with pytest.raises(InputError, match="removes nothing of the 64 channels"):
        MosaicDiff(ratio=0.01).install(fresh("dit").to("meta"))
    with pytest.raises(InputError, match="does not know the structure of transformer_blocks"):
        MosaicDiff(ratio=0.5).install(fresh("sd3").to("meta"))


def test_flops_are_the_mean_over_the_stages_and_need_no_masks():
    model = CountedModel.of("shapes_dit", None)
    counted = model.count([MosaicDiff(ratio=0.252)])
    # 4 blocks, 256 tokens, width 128: each of 512 channels has two products. 200, 400 and 400 timesteps.
    removed = 0.2 * 129 + 0.4 * 64 + 0.4 * 129
    assert model.baseline.total - counted.total == pytest.approx(4 * 256 * 128 * 2 * 2 * removed)
    # Half of the heads: of 4 projections and of the products of queries, keys and values, too.
    removed = 0.6 * 256 + 0.4 * 128
    heads = 0.6 * (4 * 128 * 64 + 2 * 256 * 64) * 4 * 256 * 2
    counted = model.count([MosaicDiff(ratio=0.5)])
    assert model.baseline.total - counted.total == pytest.approx(4 * 256 * 128 * 2 * 2 * removed + heads)


def test_a_calibrated_network_is_nearer_to_the_whole_one_than_an_arbitrary_part(tmp_path, monkeypatch):
    path, where = tmp_path / "masks.safetensors", Where(blocks=[1])
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/calibrate_mosaicdiff.py"))
    options = ["--config", "demo_mosaicdiff.yaml", "--data.split", "val", "--data.images", "4"]
    options += ["--compressor.ratio", "0.25", "--compressor.where.blocks", "[1]", "--compressor.masks", str(path)]
    monkeypatch.setattr("sys.argv", ["", *options])
    script["main"]()
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["calibration"] == {"dataset": "ShapeTextures", "split": "val", "images": 4, "seed": 0}
    assert card["sparsities"] == [0.25, 0.125, 0.25]
    backbone = loaded(DiT, "shapes_dit")
    images, labels = render_shapes(torch.arange(2), "test")
    for timestep in (100, 400, 900):
        timesteps = torch.full((2,), timestep)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        noisy = backbone.parametrisation.add_noise(2 * images - 1, noise, timesteps)
        arbitrary = Halved(ratio=0.125 if timestep == 400 else 0.25, where=where)
        pruners = MosaicDiff(ratio=0.25, masks=str(path), where=where), arbitrary
        with torch.inference_mode():
            whole = backbone.predict(noisy, timesteps, labels)
            differences = []
            for pruner in pruners:
                with pruner.applied_to(backbone.denoiser):
                    differences.append(float((backbone.predict(noisy, timesteps, labels) - whole).square().mean()))
        assert 0 < differences[0] < 0.5 * differences[1]
