"""Margins by frequency against planted ones, and the frequency response that they see."""

import numpy as np
import pytest

from bigain.report.explain.frequency import Response
from bigain.report.explain.margins import Errors, margins
from bigain.report.explain.spectrum import spectrum

IMAGES, TIMES = 60, np.repeat([125, 375, 625, 875], 3)
# Bands of margins: most of the mean below, most of the variance above.
MU, SIGMA = np.array([0.1, 0.4, 0.2, 0.05, 0.05]), np.array([0.02, 0.1, 0.1, 0.2, 0.3])


def planted(mu, sigma, seed=0, common=0.0):
    """Errors of two classes by band, the first is true; images differ by `common`, alike in all bands."""
    make = np.random.default_rng(seed)
    margin = mu + sigma * make.standard_normal((IMAGES, len(TIMES), 5))
    margin += common * make.standard_normal((IMAGES, 1, 1))
    bands = np.stack([np.full_like(margin, 0.5), 0.5 + margin], 1)
    return margin, bands


def test_moments_of_planted_bands_are_over_noise_or_over_everything():
    margin, bands = planted(MU, SIGMA, common=0.3)
    of = Errors(np.arange(IMAGES), np.zeros(IMAGES, int), bands.sum(3), np.tile(TIMES, (IMAGES, 1)), bands)
    every = np.ones((IMAGES, len(TIMES)), bool)
    measured = spectrum(of, every)
    assert measured.over_noise
    assert measured.mu == pytest.approx(margin.mean((0, 1)))
    groups = margin.reshape(IMAGES, 4, 3, 5)
    expected = np.mean([np.cov(groups[i, t].T) for i in range(IMAGES) for t in range(4)], axis=0)
    np.testing.assert_allclose(measured.covariance, expected, atol=1e-12)
    # What images have in common is no noise: without repeated timesteps it counts.
    single = np.tile(np.arange(3) == 1, (IMAGES, 4))
    once = spectrum(of, single)
    assert not once.over_noise
    np.testing.assert_allclose(once.covariance, np.cov(margin[single].T, bias=True), atol=1e-12)
    whole = margins(of, every)
    assert whole.sigma_over_noise**2 == pytest.approx(expected.sum())
    assert margins(of, single).sigma_over_noise is None
    # One lonely trial is enough: nothing is known of its noise.
    every[0, :2] = False
    assert not spectrum(of, every).over_noise


def test_tokens_of_patches_see_the_highest_frequencies_folded():
    """Two tokens for four places: what is above half of the latent's frequencies comes back mirrored."""
    kept = [0.8, 1.0, 0.6, 0.4, 0.2]
    of = Response(1, [0, 0.25, 0.5, 0.75, 1], 1, 1, [{"grid": [8, 8], "kept": kept}], [])
    assert of.gain([8, 8], 4) == pytest.approx(kept)
    assert of.gain([16, 16], 8) == pytest.approx([0.8, 1.0, 0.6, 0.4, 0.2, 0.2, 0.4, 0.6, 1.0])
    # Bands of another width are read between the centres.
    assert of.gain([8, 8], 2) == pytest.approx([0.8, 0.8, 0.3])
    assert Response(1, [0, 1], 1, 1, [], []).gain([8, 8], 4) is None
