"""Noise levels, targets and conversions against diffusers and closed forms in float64."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from bigain.diffusion.parametrisation import Diffusion, Flow, resolution_shift

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TIMESTEPS = torch.tensor([0, 25, 500, 975, 999])
KINDS = {
    "epsilon": Diffusion("epsilon", SCHEDULER.alphas_cumprod),
    "v_prediction": Diffusion("velocity", SCHEDULER.alphas_cumprod),
    "flow": Flow("velocity", FlowMatchEulerDiscreteScheduler().config),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, NOISE = normal(5, 4, 6, 3, seed=1), normal(5, 4, 6, 3, seed=2)


@every_kind
def test_noising_and_the_velocity_are_those_of_diffusers(kind):
    model = KINDS[kind]
    noisy, velocity = model.add_noise(X, NOISE, TIMESTEPS), model.target("velocity", X, NOISE, TIMESTEPS)
    if kind == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler()
        # It counts from 1; the last timestep has no noise-free 0.
        assert torch.equal(noisy[0], X[0])
        torch.testing.assert_close(noisy[1:], scheduler.scale_noise(X[1:], TIMESTEPS[1:].float(), NOISE[1:]))
        assert torch.equal(velocity, NOISE - X)
    else:
        torch.testing.assert_close(noisy, SCHEDULER.add_noise(X, NOISE, TIMESTEPS))
        torch.testing.assert_close(velocity, SCHEDULER.get_velocity(X, NOISE, TIMESTEPS))
    assert model.prediction_type == kind
    assert model.target("epsilon", X, NOISE, TIMESTEPS) is NOISE
    assert model.target("x0", X, NOISE, TIMESTEPS) is X


@every_kind
@pytest.mark.parametrize("target", ["epsilon", "velocity", "x0"])
def test_a_perfect_prediction_gives_every_target(kind, target):
    """Whatever the network predicts; at the noisiest timesteps x0 is hardly in what is seen."""
    model, t = KINDS[kind], TIMESTEPS[:4]
    x, noise = X[:4], NOISE[:4]
    noisy, output = model.add_noise(x, noise, t), model.target(model.predicts, x, noise, t)
    actual = model.convert(output, noisy, t, target)
    torch.testing.assert_close(actual, model.target(target, x, noise, t), rtol=1e-4, atol=1e-4)


def closed_forms(kind, u, noisy, t):
    """(epsilon, velocity, x0) of an output, from the definitions, in float64."""
    u, noisy = u.double(), noisy.double()
    if kind == "flow":
        s = (t.double() / 1000).view(-1, 1, 1, 1)
        return noisy + (1 - s) * u, u, noisy - s * u
    abar = SCHEDULER.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    a, b = abar.sqrt(), (1 - abar).sqrt()
    if kind == "v_prediction":
        return b * noisy + a * u, u, a * noisy - b * u
    return u, (u - b * noisy) / a, (noisy - b * u) / a


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversions_are_the_closed_forms(kind, dtype):
    """Of outputs in half precision, too, in float32."""
    noisy, output = X.to(dtype), normal(5, 4, 6, 3, seed=3).to(dtype)
    expected = closed_forms(kind, output, noisy, TIMESTEPS)
    for target, value in zip(("epsilon", "velocity", "x0"), expected, strict=True):
        actual = KINDS[kind].convert(output, noisy, TIMESTEPS, target)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, value.float(), rtol=2e-4, atol=2e-4)


def test_the_noise_error_of_a_flow_vanishes_at_high_noise():
    """(1 - s)^2 |v - v_hat|^2, and that of x0 is s^2 |v - v_hat|^2: with snr weights, they are the same."""
    model, t = KINDS["flow"], TIMESTEPS[1:]
    x, noise, guess = X[1:].double(), NOISE[1:].double(), normal(4, 4, 6, 3, seed=3).double()
    s, noisy = (t.double() / 1000), model.add_noise(x, noise, t)
    errors = {
        target: (model.convert(guess, noisy, t, target) - model.target(target, x, noise, t)).square().mean((1, 2, 3))
        for target in ("epsilon", "velocity", "x0")
    }
    torch.testing.assert_close(errors["epsilon"].double(), (1 - s) ** 2 * errors["velocity"], rtol=1e-3, atol=0)
    torch.testing.assert_close(errors["x0"].double(), s**2 * errors["velocity"], rtol=1e-3, atol=0)
    torch.testing.assert_close(errors["x0"] * model.snr(t), errors["epsilon"], rtol=1e-3, atol=0)
    assert errors["epsilon"][-1] < 1e-5 * errors["velocity"][-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.7},
    ],
)
def test_trials_lie_on_the_schedule_of_the_scheduler(settings):
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    mu = None
    if "shift" not in settings:
        mu = calculate_shift(1024, base_shift=settings.get("base_shift", 0.5))
        assert resolution_shift(scheduler.config, 1024) == pytest.approx(mu)
    even = torch.tensor([0, 25, 525, 999])
    # Of its own accord, the scheduler starts from levels that are shifted already.
    scheduler.set_timesteps(sigmas=[t / 1000 for t in (999, 525, 25, 1)], mu=mu)
    placed = Flow("velocity", scheduler.config).on_schedule(even, 1024)
    torch.testing.assert_close(placed, scheduler.timesteps.flip(0))
    assert placed.dtype == torch.float32
    assert KINDS["epsilon"].on_schedule(even, 1024) is even
