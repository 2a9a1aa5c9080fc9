"""Plain diffusers pipelines, and the Lightning path."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, StableDiffusionPipeline
from lightning.pytorch import LightningModule, Trainer
from models import forward, fresh, inputs, snapshot, tiny_dit, tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae
from torch import nn
from torch.utils.data import DataLoader

from bigain.backbones import row_keys
from bigain.compressors import CAM, IEKVD, LGTM, SiTo, ToMe
from bigain.compressors.base import _owners
from bigain.diffusion.schedules import Linear

COMPRESSORS = [LGTM(ratio=0.5), ToMe(ratio=0.5), CAM(SiTo()), IEKVD(factor=2, alpha=Linear(0.8, 1.2))]


class Boom(Exception):
    pass


@pytest.fixture(scope="module")
def stable_diffusion():
    pipe = StableDiffusionPipeline(
        unet=tiny_unet(sample_size=8),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def dit():
    # The pipeline's null class is number 1000.
    pipe = DiTPipeline(tiny_dit(num_embeds_ada_norm=1000), tiny_vae(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompts, scale):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": scale, "output_type": "np"}
    return pipe(prompts, generator=generator, **options).images


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
@pytest.mark.parametrize(
    ("name", "prompts", "scale"),
    [("stable_diffusion", ["a cat", "a dog"], 7.5), ("dit", [1, 5], 1.0), ("dit", [1, 5], 4.0)],
)
def test_pipelines_of_diffusers(name, prompts, scale, compressor, request):
    pipe = request.getfixturevalue(name)
    network = pipe.unet if name == "stable_diffusion" else pipe.transformer
    before, plain = snapshot(network), draw(pipe, prompts, scale)
    with compressor.applied_to(network):
        compressed = draw(pipe, prompts, scale)
        assert (draw(pipe, prompts, scale) == compressed).all()
    assert abs(compressed - plain).max() > 1e-3
    assert (draw(pipe, prompts, scale) == plain).all()
    assert snapshot(network) == before


class LateBackbone(nn.Module):
    """Has no network before `load`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def load(self):
        if not hasattr(self, "denoiser"):
            self.denoiser = fresh(self.network)


class Denoising(LightningModule):
    def __init__(self, network="unet", fail=False):
        super().__init__()
        self.backbone = LateBackbone(network)
        self.fail = fail

    def predict_step(self, batch, batch_idx):
        with row_keys(torch.arange(len(batch["timestep"]))):
            output = self.backbone.denoiser(**batch).sample
        if self.fail and batch_idx == 1:
            raise Boom
        return output


def trainer(callback):
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"], False)
    return Trainer(accelerator="cpu", devices=1, callbacks=[callback], **quiet)


def batches(network="unet"):
    return DataLoader([inputs(network, 2, seed=seed) for seed in (1, 2)], batch_size=None)


def expected_of(compressor, network="unet"):
    with compressor.applied_to(fresh(network)) as model, row_keys(torch.arange(2)):
        return [forward(model, batch) for batch in batches(network)]


def hooked(module):
    return [part for part in module.modules() if part._forward_hooks or part._forward_pre_hooks]


# Two items need no workers.
few_workers = pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")


@few_workers
@pytest.mark.parametrize("network", ["unet", "dit"])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_lightning_predicts_as_the_context_does(compressor, network):
    module = Denoising(network)
    expected = expected_of(compressor, network)
    for _ in range(2):
        predictions = trainer(compressor).predict(module, batches(network))
        assert all(map(torch.equal, predictions, expected))
        assert not _owners
    assert not hooked(module)
    plain = fresh(network)
    for batch in batches(network):
        assert torch.equal(forward(module.backbone.denoiser, batch), forward(plain, batch))


@few_workers
def test_lightning_undoes_after_an_exception():
    module, compressor = Denoising(fail=True), LGTM(ratio=0.5)
    with pytest.raises(Boom):
        trainer(compressor).predict(module, batches())
    assert not _owners
    assert not hooked(module)
    module.fail = False
    assert all(map(torch.equal, trainer(compressor).predict(module, batches()), expected_of(compressor)))
