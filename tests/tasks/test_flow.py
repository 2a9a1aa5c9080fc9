"""Models of flow matching: errors and samples against plain loops, and schedulers that fit or do not."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from trainers import quiet_trainer

import bigain
from bigain.backbones import DiT
from bigain.data import ShapeTextures
from bigain.diffusion.sampling import initial_noise, item_keys
from bigain.diffusion.trials import trial_grid, trial_keys, trial_noise
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler
from bigain.tasks.scheduling import make_scheduler
from bigain.tokens.randomness import stable_hash

# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (3, 32, 32)
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 4.0}


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """The embedded network, as if its output were a velocity."""
    folder = tmp_path_factory.mktemp("model") / "dit"
    shutil.copytree(Path(bigain.__file__).parent / "assets" / "shapes_dit", folder)
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    backbone = DiT(str(folder))
    backbone.load()
    return backbone


def velocity(backbone, x, timestep, label):
    labels = torch.full((len(x),), label)
    return backbone.denoiser(x, timestep=timestep.expand(len(x)), class_labels=labels).sample


@torch.inference_mode()
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        # Of the squared error of the velocity, by sigma.
        ({}, lambda s: 1),
        ({"loss": "velocity"}, lambda s: 1),
        ({"loss": "epsilon"}, lambda s: (1 - s) ** 2),
        ({"loss": "x0"}, lambda s: s**2),
        ({"loss": "x0", "weights": "snr"}, lambda s: (1 - s) ** 2),
        ({"weights": [3.0, 0.5]}, lambda s: 3.0 if s < 0.5 else 0.5),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_of_a_flow(dit, settings, scale):
    module = DiffusionClassifier(dit, trials=[2], keep=None, seed=3, **settings)
    data = ShapeTextures(images=1)
    ((record,),) = quiet_trainer(precision="32-true").predict(module, datamodule=data)
    errors = dict(zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True))
    x = dit.encode(data.read_image(data.items[0])[None])
    for j, t in enumerate(trial_grid(2)):
        # A shift of 2 puts 0.25 at 0.4, and 0.75 at 6 / 7.
        s = 2 * t / (1000 + t)
        key = trial_keys(torch.tensor([stable_hash(record.image_id)]), torch.tensor([j]), 3)
        noise = trial_noise(key, SHAPE)
        for label in (0, 7):
            predicted = velocity(dit, (1 - s) * x + s * noise, torch.tensor([1000 * s]), label)
            expected = scale(s) * (predicted - (noise - x)).square().mean()
            assert errors[label, j] == pytest.approx(float(expected), rel=1e-4)
    assert set(record.timesteps) == {400, 857}


@torch.inference_mode()
@pytest.mark.parametrize(("options", "shift"), [({}, 2.0), ({"shift": 1.0}, 1.0), (DYNAMIC, torch.tensor(0.5).exp())])
def test_sampling_is_a_slow_euler_loop(dit, options, shift):
    """256 tokens are the fewest of the resolution-dependent shift."""
    module = DiffusionSampler(dit, FlowMatchEulerDiscreteScheduler, options, steps=4, guidance=3.0)
    data = ShapeTextures(images=1)
    module.trainer = quiet_trainer()
    module.trainer.datamodule = data
    data.setup("predict")
    module.check_fit(data)
    module.null, module.shape = torch.tensor([16]), SHAPE
    actual = module.generate([data.items[0].image_id], torch.tensor([5]))
    x = initial_noise(item_keys(torch.tensor([stable_hash(data.items[0].image_id)]), 0), SHAPE)
    # The scheduler ends where its 1000 training levels do, shifted, and shifts again.
    least = 1 / (1000 + float(shift) - 1) * float(shift) if options is not DYNAMIC else 1 / 1000
    even = torch.linspace(1, least, 4)
    sigmas = [*(shift * even / (1 + (shift - 1) * even)).tolist(), 0.0]
    for s, after in pairwise(sigmas):
        null, wanted = (velocity(dit, x, torch.tensor([1000 * s]), label) for label in (16, 5))
        x = x + (after - s) * (null + 3 * (wanted - null))
    torch.testing.assert_close(actual, x, rtol=1e-4, atol=1e-4)


FITTING = [
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]


@pytest.mark.parametrize("kind", FITTING)
def test_schedulers_that_sample_a_flow(dit, kind):
    scheduler, spacing = make_scheduler(dit, kind, {}, 6, SHAPE)
    assert spacing == {}
    # Their noise levels are shifted as the model's are: the second of six is at 5 / 6 without.
    assert scheduler.timesteps[1] > 880


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DDIMScheduler, {}),
        # Leaves the noise of its last step.
        (DEISMultistepScheduler, {}),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": False}),
        (DPMSolverMultistepScheduler, {"prediction_type": "epsilon"}),
    ],
    ids=str,
)
def test_schedulers_of_another_kind(dit, kind, options):
    with pytest.raises(InputError, match=f"{kind.__name__} does not sample from models of flow matching, such as"):
        make_scheduler(dit, kind, options, 5, SHAPE)


def test_folders_of_other_schedulers_of_flows(dit, tmp_path):
    """Sana and Wan are saved with DPM-Solver and UniPC, whose shift has another name."""
    folder = shutil.copytree(dit.model, tmp_path / "dit")
    file = folder / "scheduler/scheduler_config.json"
    DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(file.parent)
    backbone = DiT(str(folder))
    backbone.load_settings(backbone.find())
    assert backbone.parametrisation.on_schedule(torch.tensor([500]), 1).item() == pytest.approx(750)
    file.write_text(json.dumps({**json.loads(file.read_text()), "flow_shift": 0}))
    with pytest.raises(InputError, match="not 1000 numbers"):
        DiT(str(folder)).load_settings(backbone.find())
