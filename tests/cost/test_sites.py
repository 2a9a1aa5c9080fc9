"""A compressor that acts at no timestep of a run is refused before the first image."""

import pytest
import torch
from diffusers import DDIMScheduler
from lightning.pytorch import Callback
from models import loaded
from trainers import quiet_trainer

from bigain.backbones import DiT
from bigain.commands.flops.model import CountedModel
from bigain.compressors import CAM, IEKVD, DiPGO, MosaicDiff, ToDo, ToMe
from bigain.compressors.structural import prunable, weights_digest, write_masks
from bigain.cost.sites import site_table
from bigain.data import ShapeTextures
from bigain.diffusion.schedules import Steps
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler, FeatureProbe
from bigain.tasks.results_writer import FeatureResults, GenerationResults, ResultsWriter
from bigain.tokens.grid import Grid


@pytest.fixture(scope="module")
def embedded():
    return loaded(DiT, "shapes_dit").denoiser


def skipping(path, network, ratio):
    """DiP-GO that skips modules in one of two bins of timesteps, or at a small ratio in none."""
    names = list(prunable(DiPGO(ratio=0.1, masks="").sites_of(network)))
    tensors = {f"{name}.score": torch.tensor([0.9, 0.1]) for name in names}
    tensors |= {f"{name}.cost": torch.tensor(0.4 / len(names)) for name in names}
    write_masks(path, tensors, {"method": "DiPGO", "weights_sha256": weights_digest(network)})
    return DiPGO(ratio=ratio, masks=str(path), bins=2)


@pytest.mark.parametrize(
    ("make", "idle", "acting", "words"),
    [
        (lambda *_: ToMe(ratio=0.5, during=[900, 999]), [250, 750], 900, r"ToMe\(.*=\[900, 999\]\) .*: 250, 750; "),
        (lambda *_: CAM(ToMe(ratio=0.5, during=[3, 3])), range(4, 1000), 3, r"=\[3, 3\].*: 4, 5, 6.* \.\.\., 999; "),
        (lambda *_: ToDo(factor=Steps([2, 1], [500])), [499], 500, r"factor=Steps\(values=\[2, 1\], below=\[500\]\)"),
        (lambda *_: IEKVD(factor=2, skip_zero=True), [0], 1, "skip_zero=True.* timesteps that are evaluated: 0; "),
        (lambda *_: MosaicDiff(ratio=0.5, middle=0, boundaries=[1, 999]), [1, 998], 0, r"boundaries=\[1, 999\]"),
        (lambda *given: skipping(*given, 0.1), [0, 499], 500, r"DiPGO\(ratio=0.1, bins=2\) changes nothing"),
        (lambda *given: skipping(*given, 0.002), range(1000), None, r"DiPGO\(ratio=0.002, "),
        (lambda *_: ToDo(factor=Steps([2, 1], [500]), during=[0, 9]), range(1000), None, r"during=\[0, 9\]"),
    ],
)
def test_timesteps_at_which_nothing_is_compressed(embedded, tmp_path, make, idle, acting, words):
    compressor = make(tmp_path / "gates.safetensors", embedded)
    without_masks = isinstance(compressor, MosaicDiff)
    network = CountedModel.of("shapes_dit", None).backbone.denoiser if without_masks else embedded
    with compressor.applied_to(network):
        with pytest.raises(InputError, match=words):
            site_table(compressor, network, Grid(32, 32), idle)
        if acting is not None:
            assert site_table(compressor, network, Grid(32, 32), [*idle, acting])
    if acting is None:
        with pytest.raises(InputError, match=words):
            CountedModel.of("shapes_dit", None).count([compressor])


class NoBatch(Callback):
    def on_predict_batch_start(self, *args, **kwargs):
        pytest.fail("an image was evaluated")


@pytest.mark.parametrize("task", ["grid", "uniform", "features", "generation"])
def test_before_the_first_image(tmp_path, task):
    backbone, data = DiT("shapes_dit"), ShapeTextures(images=2, num_workers=0)
    if task == "features":
        module, results = FeatureProbe(backbone, timesteps=[100, 500]), FeatureResults()
    elif task == "generation":
        module, results = DiffusionSampler(backbone, DDIMScheduler, steps=3, guidance=1), GenerationResults()
    else:
        module, results = DiffusionClassifier(backbone, trials=[1], keep=[1], timesteps=task), ResultsWriter()
    trainer = quiet_trainer(ToMe(ratio=0.5, during=[998, 999]), NoBatch(), results, default_root_dir=tmp_path)
    with pytest.raises(InputError, match=r"during=\[998, 999\].* evaluated: \d+.*; let it act at some of these"):
        trainer.predict(module, datamodule=data)
    if task in ("grid", "uniform"):
        records = [record for batch in quiet_trainer().predict(module, datamodule=data) for record in batch]
        assert {step for record in records for step in record.timesteps} == {*module.visited.tolist()}
