"""The sampling loop: noise that belongs to the item, any scheduler, no shared state."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from bigain.diffusion.sampling import initial_noise, item_keys, sample

SHAPE = (3, 4, 6)
# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler]
STOCHASTIC = [DDPMScheduler, EulerAncestralDiscreteScheduler]


def keys_of(*items, seed=0):
    return item_keys(torch.tensor(items), seed)


def network(x, timestep, step):
    """Some function of its input, row by row."""
    return torch.sin(3 * x) * 0.5 + timestep.float() / 2000


def prepared(kind, steps=4):
    scheduler = kind()
    scheduler.set_timesteps(steps)
    return scheduler


def draw(kind, *items, steps=4, seed=0, denoise=network):
    return sample(denoise, keys_of(*items, seed=seed), SHAPE, prepared(kind, steps), steps)


def test_initial_noise_belongs_to_item_and_seed():
    both = initial_noise(keys_of(5, 9), SHAPE)
    assert both.shape == (2, *SHAPE)
    assert both.dtype == torch.float32
    assert torch.equal(initial_noise(keys_of(9), SHAPE)[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(initial_noise(keys_of(5, seed=1), SHAPE)[0], both[0])


@pytest.mark.parametrize("kind", [*SCHEDULERS, *STOCHASTIC])
def test_an_item_does_not_know_its_batch(kind):
    together = draw(kind, 1, 2, 3)
    alone = torch.cat([draw(kind, item) for item in (1, 2, 3)])
    assert torch.equal(together, alone)
    assert together.dtype == torch.float32
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_it_is_the_plain_loop(kind):
    scheduler = kind()
    scheduler.set_timesteps(4)
    x = initial_noise(keys_of(1, 2), SHAPE) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, timestep), timestep, 0)
        x = scheduler.step(output, timestep, x).prev_sample
    torch.testing.assert_close(draw(kind, 1, 2), x, rtol=0, atol=0)


class FromNothing(EulerAncestralDiscreteScheduler):
    """Starts at zero, so that all there is comes from the noise of the steps."""

    init_noise_sigma = 0.0


def test_noise_that_a_scheduler_adds_belongs_to_item_and_seed():
    def nothing(x, timestep, step):
        return torch.zeros_like(x)

    noise = draw(FromNothing, 1, 2, steps=2, denoise=nothing)
    assert noise.std() > 0.01
    # A multiple of one and the same noise would correlate fully.
    others = [noise[1], draw(FromNothing, 1, steps=2, seed=1, denoise=nothing)[0]]
    others.append(initial_noise(keys_of(1), SHAPE)[0])
    for other in others:
        assert abs(torch.corrcoef(torch.stack((noise[0].flatten(), other.flatten())))[0, 1]) < 0.99


def test_a_second_order_scheduler_asks_more_often():
    steps = []

    def counted(x, timestep, step):
        steps.append(step)
        return network(x, timestep, step)

    draw(HeunDiscreteScheduler, 1, steps=3, denoise=counted)
    assert steps == [0, 1, 2, 3, 4]
