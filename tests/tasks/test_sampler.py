"""The sampler against plain diffusers loops, and what its images may not depend on."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UnCLIPScheduler,
)
from lightning.pytorch.callbacks import Callback
from torch import nn
from trainers import quiet_trainer

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.forward import rows_now
from bigain.compressors import IEKVD, ImportanceMerging, ToMe
from bigain.data import ShapeTextures
from bigain.data.images import decode_files
from bigain.diffusion.sampling import initial_noise, item_keys
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError
from bigain.metrics import Inception, ShapeFeatures
from bigain.metrics.base import Images
from bigain.modules import DiffusionSampler
from bigain.tasks.results_writer import GenerationResults
from bigain.tasks.scheduling import make_scheduler, scheduler_settings
from bigain.tasks.scoring import Measuring
from bigain.tokens.randomness import stable_hash

# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IDS = [f"test/{i:06d}" for i in range(32)]


class Recorded(DiffusionSampler):
    """Keeps latents by id."""

    def generate(self, image_ids, condition):
        latents = super().generate(image_ids, condition)
        self.__dict__.setdefault("latents", {}).update(zip(image_ids, latents, strict=True))
        return latents


class Keep(Callback):
    """Collects what predict_step returns, and the rows of every forward of the denoiser."""

    def __init__(self):
        self.images, self.records, self.failed, self.rows = {}, {}, {}, []

    def on_predict_start(self, trainer, pl_module):
        denoiser = pl_module.backbone.denoiser
        self.handle = denoiser.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.failed.update(batch["failed"])
        self.records.update({record.image_id: record for record in outputs.records})
        for record, file in zip(outputs.records, outputs.files, strict=bool(outputs.files)):
            self.images[record.image_id] = decode_files([file])[0]

    def on_predict_end(self, trainer, pl_module):
        self.handle.remove()

    def stacked(self):
        return torch.stack([self.images[image_id] for image_id in sorted(self.images)])


def run(sampler, *callbacks, images=2, batch_size=2, precision="32-true", data=None):
    keep = Keep()
    data = data or ShapeTextures(images=images, batch_size=batch_size)
    trainer = quiet_trainer(keep, *callbacks, precision=precision)
    trainer.predict(sampler, datamodule=data, return_predictions=False)
    return keep


@pytest.fixture(scope="module")
def dit():
    return DiT("shapes_dit")


@pytest.fixture(scope="module")
def unet():
    return StableDiffusion("shapes_unet")


def sampler(backbone, scheduler=DDIMScheduler, **settings):
    return Recorded(backbone, scheduler, **{"steps": 2, "guidance": 2.0, **settings})


def keys_of(ids, seed=0):
    return item_keys(torch.tensor([stable_hash(image_id) for image_id in ids]), seed)


def plain_loop(scheduler, steps, guidance, x, predict):
    """A diffusers pipeline's loop: null and condition in one batch."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        pair = scheduler.scale_model_input(torch.cat([x] * 2), timestep)
        null, condition = predict(pair, timestep).chunk(2)
        x = scheduler.step(null + guidance * (condition - null), timestep, x).prev_sample
    return x


@torch.no_grad()
def test_a_dit_with_ddim_is_the_plain_loop(dit):
    module = sampler(dit, steps=5, guidance=3.0)
    run(module)
    scheduler = DDIMScheduler.from_config(dit.scheduler_config)
    labels = torch.tensor([16, 16, 0, 1])

    def predict(x, timestep):
        return dit.denoiser(x, timestep=timestep.expand(4), class_labels=labels).sample

    expected = plain_loop(scheduler, 5, 3.0, initial_noise(keys_of(IDS[:2]), (3, 32, 32)), predict)
    actual = torch.stack([module.latents[image_id] for image_id in IDS[:2]])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_v_predicting_unet_is_the_plain_loop(unet, monkeypatch):
    kind, texts = EulerDiscreteScheduler, []
    module = sampler(unet, kind, steps=4, guidance=3.0, items_per_forward=2, share=False)
    unet.load()
    monkeypatch.setattr(unet, "finish_conditions", lambda: texts.append("finished"))
    with unet.text_encoder.register_forward_hook(lambda *_: texts.append("encoded")):
        run(module, batch_size=1)
    # Prompts of classes are encoded before the first batch.
    assert texts.count("encoded") > 1
    assert texts.index("finished") == len(texts) - 1
    assert module.scheduler.config["prediction_type"] == "v_prediction"
    scheduler = kind.from_config(unet.scheduler_config)
    prompts = ShapeTextures().class_space.prompts[:2]
    ids = unet.tokenizer(["", "", *prompts], padding="max_length", return_tensors="pt").input_ids
    states = unet.text_encoder(ids).last_hidden_state

    def predict(x, timestep):
        return unet.denoiser(x, timestep, encoder_hidden_states=states).sample

    expected = plain_loop(scheduler, 4, 3.0, initial_noise(keys_of(IDS[:2]), (3, 32, 32)), predict)
    actual = torch.stack([module.latents[image_id] for image_id in IDS[:2]])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_settings_of_the_scheduler_come_from_the_folder(dit):
    """As in diffusers pipelines: from_config, and options after it."""
    dit.load()
    twin = copy.copy(dit)
    twin.scheduler_config = {**dit.scheduler_config, "_class_name": "PNDMScheduler", "steps_offset": 1}
    twin.scheduler_config |= {"set_alpha_to_one": False}
    for kind in (DDIMScheduler, EulerDiscreteScheduler):
        expected = kind.from_config(twin.scheduler_config)
        expected.set_timesteps(10)
        made, spacing = make_scheduler(twin, kind, {}, 10, (3, 32, 32))
        assert made.config == expected.config
        assert spacing == {}
        assert made.timesteps.tolist() == expected.timesteps.tolist()
    assert expected.timesteps.tolist() == list(range(901, 0, -100))
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    spaced, _ = make_scheduler(twin, DDIMScheduler, options, 10, (3, 32, 32))
    assert spaced.timesteps.tolist() == list(range(999, 0, -100))
    assert spaced.final_alpha_cumprod == 1
    stored = scheduler_settings(spaced)
    expected = {"class": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    expected |= {"steps_offset": 1, "set_alpha_to_one": True, "timestep_spacing": "trailing", "thresholding": False}
    assert {name: stored.get(name) for name in expected} == expected
    assert "variance_type" not in stored
    solver, _ = make_scheduler(twin, DPMSolverMultistepScheduler, {}, 10, (3, 32, 32))
    assert scheduler_settings(solver)["lambda_min_clipped"] == "-inf"


def test_a_dit_without_null_class_samples_without_guidance_only():
    backbone = DiT("shapes_dit")
    backbone.load()
    for block in backbone.denoiser.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        embedder.embedding_table = nn.Embedding.from_pretrained(embedder.embedding_table.weight[:-1])
    with pytest.raises(InputError, match="no unconditional one; sample with guidance: 1"):
        run(sampler(backbone, guidance=4.0))
    assert run(sampler(backbone, guidance=1.0)).rows == [4, 4]


@pytest.mark.parametrize("backbone", ["dit", "unet"])
def test_images_do_not_depend_on_the_batch(backbone, request):
    backbone, compressor = request.getfixturevalue(backbone), ToMe(ratio=0.5)
    kind = EulerAncestralDiscreteScheduler
    # The model's own schedule has a sigma of 20,000, around which float32 has few digits left.
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    whole = run(sampler(backbone, kind, scheduler_options=options), compressor, images=3, batch_size=3).stacked()
    for batch_size in (1, 2):
        module = sampler(backbone, kind, scheduler_options=options)
        assert torch.equal(run(module, compressor, images=3, batch_size=batch_size).stacked(), whole)


class Guided(Callback):
    """The guidance that rows are named with, and that of the output, of every forward."""

    def on_predict_start(self, trainer, pl_module):
        self.given, self.own = [], []

        def keep(module, args, output):
            self.given.append(rows_now().guidance)
            null, condition = output[0][:, :3].chunk(2)
            self.own.append((condition - null).abs().mean(1).repeat(2, 1, 1))

        self.handle = pl_module.backbone.denoiser.register_forward_hook(keep)

    def on_predict_end(self, trainer, pl_module):
        self.handle.remove()


def test_the_guidance_of_the_step_before_ranks_the_tokens_of_the_same_images(dit):
    guided, compressor = Guided(), ImportanceMerging(ratio=0.7)
    run(sampler(dit, items_per_forward=2), compressor, guided, images=3, batch_size=3)
    # Two forwards of two items, the last of which is filled up, in two steps each.
    assert [given is None for given in guided.given] == [True, False, True, False]
    assert all(torch.equal(guided.given[after], guided.own[after - 1]) for after in (1, 3))


class Seen(Schedule):
    """An alpha that remembers the timesteps it was asked for."""

    def __init__(self):
        self.timesteps = []

    def __call__(self, timesteps):
        self.timesteps.append(timesteps.clone())
        return 0.8 * timesteps / 999 + 1.2 * (1 - timesteps / 999)


@pytest.mark.parametrize(
    ("settings", "compressed"),
    [({}, [666, 333, 0]), ({"skip_zero": True}, [666, 333]), ({"during": [300, 400]}, [333])],
)
def test_a_schedule_of_alpha_follows_the_timestep_of_every_row(unet, settings, compressed):
    alpha, module = Seen(), sampler(unet, EulerDiscreteScheduler, steps=3, items_per_forward=2)
    run(module, IEKVD(factor=2, alpha=alpha, **settings))
    actual = torch.stack(alpha.timesteps)
    sites = len(actual) // len(compressed)
    assert actual.shape == (len(compressed) * sites, 4)
    assert actual.tolist() == [[step] * 4 for step in compressed for _ in range(sites)]
    assert GenerationResults().timesteps(module, ()) == {666: 1, 333: 1, 0: 1}


def test_seeds_differ_and_the_global_generator_does_not_matter(dit):
    actual = []
    for state in (1, 2):
        torch.manual_seed(state)
        actual.append(run(sampler(dit, EulerAncestralDiscreteScheduler)).stacked())
    assert torch.equal(*actual)
    other = run(sampler(dit, EulerAncestralDiscreteScheduler, seed=1)).stacked()
    assert all((a != b).any() for a, b in zip(other, actual[0], strict=True))


@pytest.mark.parametrize("images", ["png", "jpeg100_truncate"])
def test_records_hold_prompt_labels_and_features_of_what_is_on_disk(dit, images, monkeypatch):
    decode = dit.decode
    monkeypatch.setattr(dit, "decode", lambda latents: decode(latents).to(memory_format=torch.channels_last))
    module = sampler(dit, extractor=ShapeFeatures(), images=images, items_per_forward=1)
    keep = run(module)
    record = keep.records[IDS[1]]
    assert record.prompt == ShapeTextures().class_space.prompts[1]
    assert record.labels == [1]
    assert record.seconds > 0
    # As `bigain score` computes them, bit for bit, whatever the memory layout and the forwards of the run.
    expected, _ = Measuring(extractor=module.extractor).measure(Images(keep.stacked()))
    assert np.array_equal(record.features, expected[1])


def test_numbers_that_are_not_finite_are_no_image(dit, monkeypatch):
    expected, decode = run(sampler(dit)).images[IDS[0]], dit.decode
    monkeypatch.setattr(dit, "decode", lambda x: torch.cat((decode(x)[:1], decode(x)[1:] * torch.nan)))
    actual = run(sampler(dit))
    assert list(actual.images) == IDS[:1]
    assert list(actual.failed) == IDS[1:2]
    assert "not finite at precision 32-true; try another scheduler" in actual.failed[IDS[1]]
    assert torch.equal(actual.images[IDS[0]], expected)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FlowMatchEulerDiscreteScheduler, {}, "has no prediction type, but shapes_dit predicts epsilon"),
        (EDMEulerScheduler, {}, "defines its own noise levels"),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "shapes_dit is none: leave it out"),
        (
            CogVideoXDDIMScheduler,
            {"timestep_spacing": "trailing"},
            "changes the noise levels that shapes_dit was trained",
        ),
        (DDIMScheduler, {"etta": 1}, "DDIMScheduler has no option 'etta'; it has beta_end"),
        (DDIMScheduler, {"timestep_spacing": "wide"}, "wide is not supported"),
        (UnCLIPScheduler, {}, "cannot use"),
        (DDIMScheduler, {"steps_offset": 1000}, "cannot use DDIMScheduler with 1 steps and .*out of bounds"),
        (DDIMScheduler, {"num_train_timesteps": 1e12}, "num_train_timesteps must be 1000"),
    ],
    ids=str,
)
def test_bad_schedulers(dit, kind, options, message):
    with pytest.raises(InputError, match=message):
        run(sampler(dit, kind, steps=1, scheduler_options=options))


def test_without_weights_features_alone_are_refused_before_anything(dit, tmp_path):
    module = sampler(dit, images="none", extractor=Inception(weights=str(tmp_path / "absent.pth")))
    with pytest.raises(InputError, match=r"absent\.pth"):
        run(module)


@pytest.mark.parametrize(
    ("scheduler", "guidance", "before", "after"),
    [(DDIMScheduler, 2.0, 20, 20), (DDIMScheduler, 1.0, 10, 10), (HeunDiscreteScheduler, 2.0, 20, 38)],
)
def test_evaluations_of_an_image(dit, scheduler, guidance, before, after):
    module = sampler(dit, scheduler, steps=10, guidance=guidance)
    assert module.evaluations_per_image(16) == before
    data = ShapeTextures(images=1)
    data.setup("predict")
    dit.load()
    module.check_fit(data)
    assert module.evaluations_per_image(16) == after
