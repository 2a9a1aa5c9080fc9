"""`bigain maps`: tokens of the uncompressed network under known noises, without a class, and what is merged of them."""

import numpy as np
import pytest
import torch
from models import shared
from program import message_of

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.sites import layout_of
from bigain.commands.main import main
from bigain.commands.maps import _for_ratio, _site
from bigain.compressors import ABM, CAM, LGTM, FrequencyKV, ToDo
from bigain.data import ShapeTextures
from bigain.diffusion.trials import keys_of_trials, trial_noise
from bigain.errors import InputError
from bigain.tokens.grid import Grid
from bigain.tokens.scores import laplacian_l1

QUICK = ["--draws", "3", "--images", "2", "--data.images", "4", "--data.num_workers", "0"]
QUICK += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]


def tokens_of(backbone, site, image_id, image, timestep):
    """What a decision is based on: the input of a block of a U-Net, or of an attention of a DiT. `(3, n, c)`."""
    backbone.load()
    block = layout_of(backbone.denoiser).sites[site].block
    seen = []
    place = block if isinstance(backbone, StableDiffusion) else block.attn1
    place.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    noise = trial_noise(keys_of_trials([image_id], 3, 0)[0], (3, 32, 32))
    times = torch.full((3,), timestep)
    signal = backbone.training_schedule.alphas_cumprod[timestep]
    noisy = signal.sqrt() * (image[None].float() / 127.5 - 1) + (1 - signal).sqrt() * noise
    with torch.inference_mode():
        condition = backbone.null_condition()
        backbone.predict(noisy, times, condition.expand(3, *condition.shape[1:]))
    return seen[0]


@pytest.mark.parametrize(
    ("config", "kind", "options", "site", "timestep"),
    [
        ("demo_lgtm.yaml", DiT, [], 3, 200),
        ("demo_unet_lgtm.yaml", StableDiffusion, ["--site", "5", "--timestep", "700"], 5, 700),
    ],
    ids=["DiT", "U-Net"],
)
def test_maps_are_of_the_uncompressed_tokens_without_a_class(tmp_path, capsys, config, kind, options, site, timestep):
    assert (
        main(["maps", "--config", config, "--ratio", "0.9", *options, *QUICK, "--output", str(tmp_path / "out")]) == 0
    )
    out = capsys.readouterr().out
    assert "cells of 4x4 tokens: one token of each cell stays, so 2x2 cells remove at most 75 %" in out
    assert f"site {site}, " in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["maps.npz", "maps.png"]
    arrays = np.load(tmp_path / "out/maps.npz")
    data = ShapeTextures(images=4)
    data.setup("predict")
    side = arrays["salience"].shape[-1]
    assert arrays["salience"].shape == arrays["leader"].shape == (2, 3, side, side)
    assert (arrays["timesteps"] == timestep).all()
    backbone = kind({DiT: "shapes_dit", StableDiffusion: "shapes_unet"}[kind])
    for item, salience, leader in zip(data.items, arrays["salience"], arrays["leader"], strict=False):
        assert item.image_id in arrays["image_id"]
        x = tokens_of(backbone, site, item.image_id, data.read_image(item), timestep)
        grid = layout_of(backbone.denoiser).sites[site].grid(Grid(32, 32))
        np.testing.assert_allclose(salience.reshape(3, -1), laplacian_l1(x, grid), rtol=1e-3)
        assert [len(np.unique(draw)) for draw in leader] == [side**2 - int(side**2 * 0.9)] * 3


def test_the_default_site_is_the_last_of_the_highest_resolution():
    sites = layout_of(shared("unet")).sites
    assert (_site(sites, None).part, _site(sites, None).stride) == ("up", 1)
    assert _site(sites, None).index == max(site.index for site in sites if site.stride == 1)
    assert _site(layout_of(shared("dit")).sites, None).index == len(layout_of(shared("dit")).sites) - 1
    for wrong in (-1, len(sites)):
        with pytest.raises(InputError, match=rf"no site {wrong}; expected one of 0 \(down"):
            _site(sites, wrong)


@pytest.mark.parametrize(
    ("compressor", "ratio", "side"),
    [
        (LGTM(ratio=0.5), 0.75, None),
        (CAM(LGTM(ratio=0.5)), 0.76, 3),
        (ABM(ratio=0.5), 0.9375, 4),
        (LGTM(ratio=0.5), 0.95, 5),
    ],
)
def test_cells_are_the_smallest_squares_that_the_ratio_allows(compressor, ratio, side):
    settings, note = _for_ratio(compressor, ratio)
    assert settings == {"ratio": ratio, **({} if side is None else {"cell": (side, side)})}
    assert bool(note) == (side is not None)
    LGTM(**settings)
    if side:
        with pytest.raises(InputError):
            LGTM(ratio=ratio, cell=(side - 1, side - 1))
    assert _for_ratio(FrequencyKV(ratio=0.5, keep="low"), 0.9) == ({"ratio": 0.9}, "")
    with pytest.raises(InputError, match="ToDo has no ratio"):
        _for_ratio(ToDo(factor=2), 0.9)
    with pytest.raises(InputError, match="--ratio must be above 0 and below 1, not 1"):
        _for_ratio(LGTM(ratio=0.5), 1.0)


def test_a_run_without_compressor_is_refused(capsys):
    message = message_of(capsys, lambda: main(["maps", "--config", "demo_none.yaml"]))
    assert "one compressor, not 0" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compressor", "compressors/feature_cache.yaml"], "FeatureCache decides about no tokens"),
        (["--compressor.during", "[900,999]"], "nothing is decided about tokens at timestep 200"),
        (["--output", "/dev/null/maps"], "cannot write /dev/null/maps/maps.npz: Not a directory; choose another --out"),
    ],
)
def test_what_cannot_be_drawn_is_named(capsys, tmp_path, options, words):
    few = ["--draws", "1", "--images", "1", "--output", str(tmp_path / "maps"), "--data.num_workers", "0"]
    message = message_of(capsys, lambda: main(["maps", "--config", "demo_lgtm.yaml", *few, *options]))
    assert words in message
