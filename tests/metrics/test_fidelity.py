"""Fidelity to another image against formulas; LPIPS on random weights."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.models import squeezenet1_1

from bigain.errors import InputError
from bigain.metrics.base import Images, evaluate
from bigain.metrics.fidelity import Lpips, Psnr, Ssim
from bigain.runs.records import SampleRecord


def psnr(a, b):
    return Psnr().measure(Images(a, (), b))


def ssim(a, b):
    return Ssim().measure(Images(a, (), b))


@pytest.fixture(scope="module")
def pairs():
    """Four pairs of images: alike, unlike, equal, and one smooth bright image whose copy is off by one level."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(256, (4, 3, 40, 48), generator=draw, dtype=torch.uint8)
    a[3] = 240
    noise = torch.randint(-20, 21, a.shape, generator=draw)
    b = (a + noise).clamp(0, 255).to(torch.uint8)
    b[1], b[2], b[3] = a[1].flip(-1), a[2], a[3] - 1
    return a, b


def test_psnr_against_the_formula(pairs):
    a, b = pairs
    values = psnr(a, b).tolist()
    for i in (0, 1, 3):
        error = np.square(a[i].numpy().astype(float) - b[i].numpy()).mean()
        assert values[i] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-5)
    assert values[2] == math.inf
    assert values[3] == pytest.approx(48.1308, abs=1e-4)


def loop_ssim(a, b):
    """With scipy's filter, channel by channel."""
    means = []
    for x, y in zip(a.numpy().astype(float), b.numpy().astype(float), strict=True):

        def blur(z):
            return gaussian_filter(z, 1.5, truncate=3.5, mode="mirror")

        mx, my = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        means.append(((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return np.mean(means)


def test_ssim_against_scipy(pairs):
    values = ssim(*pairs).tolist()
    assert values == pytest.approx([loop_ssim(a, b) for a, b in zip(*pairs, strict=True)], abs=1e-6)
    assert values[2] == pytest.approx(1, abs=1e-9)
    assert values[0] > 0.8 > 0.5 > values[1]


def test_fidelity_is_the_mean_over_pairs_and_equal_images_have_no_psnr(pairs):
    a, b = pairs
    metrics = [Psnr(), Ssim()]
    columns = {metric.name: metric.measure(Images(a, (), b)).tolist() for metric in metrics}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    records = [SampleRecord(f"{i}", [], "", 0.1, measured=row) for i, row in enumerate(rows)]
    estimates, _ = evaluate(metrics, records, None)
    assert (estimates["psnr"]["n"], estimates["ssim"]["n"]) == (3, 4)
    assert estimates["psnr"]["value"] == pytest.approx(float(psnr(a, b)[[0, 1, 3]].mean()))
    assert estimates["psnr"]["low"] < estimates["psnr"]["value"] < estimates["psnr"]["high"]
    assert estimates["ssim"]["value"] == pytest.approx(float(ssim(a, b).mean()))
    assert list(evaluate(metrics, records[2:3], None)[0]) == ["ssim"]


def test_images_that_do_not_compare_are_refused(pairs):
    a, b = pairs
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(a, b[..., :40])


def test_lpips_of_each_pair(tmp_path, monkeypatch, pairs):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "alexnet-owt-7be5be79.pth does not exist; get it with `curl" in Lpips().unavailable()
    with pytest.raises(InputError, match="LPIPS cannot be computed"):
        Lpips().measure(Images(pairs[0], (), pairs[1]))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    lpips = Lpips("squeeze")
    assert lpips.unavailable() is None
    a, b = pairs
    with torch.autocast("cpu", torch.bfloat16):
        values = lpips.measure(Images(a, (), b))
    assert values.shape == (4,)
    assert values.dtype == torch.float32
    assert values[2] == 0
    assert values[1] > values[0] > values[3] > 0
    # What an earlier call saw does not enter.
    torch.testing.assert_close(lpips.measure(Images(a[1:2], (), b[1:2])), values[1:2])
