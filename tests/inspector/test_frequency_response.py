"""The frequency response against closed forms, and that measuring it changes nothing and leaves nothing."""

import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from models import snapshot, tiny_dit
from torch.utils.data import DataLoader

from bigain.backbones import DiT
from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import layout_of
from bigain.callbacks import FrequencyResponse, PredictionWriter
from bigain.compressors import LGTM, Compressor, Where
from bigain.data import ShapeTextures
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.runs.logs import read_records
from bigain.tokens.frequency import dct_matrix

SIDE = 8
quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")


class Showing(Compressor):
    """Compresses nothing; the tests show its onlookers tokens of their choice."""

    def __init__(self):
        super().__init__(Where())

    def hook_site(self, layout, site, context, undo):
        pass

    def tokens_out(self, site, latent):
        return 1


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.denoiser = tiny_dit()

    def load(self):
        pass


class Shows(LightningModule):
    """Shows a pair of token maps per batch, at given timesteps."""

    def __init__(self, compressor, pairs, timesteps):
        super().__init__()
        self.backbone = Net()
        self.compressor, self.pairs, self.timesteps = compressor, pairs, timesteps
        self.watched = []

    def predict_step(self, batch, batch_idx):
        before, restored = self.pairs[batch_idx]
        self.watched.append(bool(self.compressor.onlookers))
        if restored == "boom":
            raise RuntimeError(restored)
        if before is None:
            return
        context = ForwardContext.of(torch.zeros(len(before), 4, 16, 16), self.timesteps, None)
        site = layout_of(self.backbone.denoiser).sites[1]
        self.compressor.show_compressed(site, "self_attn", before, lambda: restored, context)


def measured(tmp_path, pairs, timesteps=500, **arguments):
    compressor = Showing()
    module = Shows(compressor, pairs, timesteps)
    callbacks = [compressor, FrequencyResponse(**arguments)]
    trainer = Trainer(
        callbacks=callbacks, default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    batches = [{"image_id": ["a", "b"]} for _ in pairs]
    try:
        trainer.predict(module, dataloaders=DataLoader(batches, batch_size=None), return_predictions=False)
    finally:
        assert compressor.onlookers == []
    file = tmp_path / "frequency_response.json"
    return (json.loads(file.read_text()) if file.is_file() else None), module.watched


def mode(u, v):
    """A row with a single frequency. `(1, 64, 1)`."""
    return torch.outer(dct_matrix(SIDE)[u], dct_matrix(SIDE)[v]).flatten()[None, :, None]


@quiet
def test_single_modes_have_the_energies_that_they_are_given(tmp_path):
    low, high = mode(0, 1), mode(7, 7)
    # Half of the amplitude of the high mode stays, a quarter of its energy; the error is the other half.
    found, _ = measured(tmp_path, [(3 * low + 2 * high + 5 * mode(0, 0), 3 * low + high + 5 * mode(0, 0))])
    (site,) = found["sites"]
    assert (site["name"], site["module"], site["grid"], site["channels"]) == (
        "transformer_blocks.1",
        "self_attn",
        [8, 8],
        1,
    )
    assert site["rows"] == [0, 0, 1, 0, 0]
    assert sum(site["modes"]) == 64
    assert site["original"][2] == pytest.approx([25, 9, 0, 0, 0, 0, 0, 0, 4], abs=1e-12)
    assert site["compressed"][2] == pytest.approx([25, 9, 0, 0, 0, 0, 0, 0, 1], abs=1e-12)
    assert site["error"][2] == pytest.approx([0, 0, 0, 0, 0, 0, 0, 0, 1], abs=1e-12)
    assert (site["kept"][0], site["kept"][1], site["kept"][8]) == pytest.approx((1, 1, 0.25))
    assert (site["destroyed"][1], site["destroyed"][8]) == pytest.approx((0, 0.25), abs=1e-12)
    assert found["bands"][:3] == [0, 0.125, 0.25]
    assert found["timesteps"] == [0, 200, 400, 600, 800, 1000]


@quiet
def test_a_timestep_on_an_edge_belongs_to_the_band_above(tmp_path):
    found, _ = measured(tmp_path, [(mode(1, 1), mode(1, 1))], timesteps=750, timestep_bands=36)
    assert found["timesteps"][27] == 750
    assert found["sites"][0]["rows"].index(1) == 27


@quiet
def test_a_constant_map_has_a_mean_and_nothing_else(tmp_path):
    flat = torch.full((2, 64, 3), 2.0)
    found, _ = measured(tmp_path, [(flat, flat)], timesteps=torch.tensor([0.0, 999.9]))
    (site,) = found["sites"]
    assert site["rows"] == [1, 0, 0, 0, 1]
    assert site["original"][0][0] == pytest.approx(4 * 64)
    assert site["destroyed"][0] == 0
    assert max(site["original"][4][1:]) < 1e-12


@quiet
def test_only_the_first_batches_are_watched_and_finished_ones_do_not_count(tmp_path):
    x = mode(1, 1)
    pairs = [(None, None), (x, x), (x, x), (x, 0 * x), (x, 0 * x)]
    found, watched = measured(tmp_path, pairs, batches=2)
    assert watched == [True, True, True, False, False]
    assert (found["batches"], found["images"], found["sites"][0]["rows"][2]) == (2, 4, 2)
    assert found["sites"][0]["destroyed"][2] == 0


@quiet
def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path):
    x = torch.cat([mode(1, 1), mode(1, 1) * math.inf])
    found, _ = measured(tmp_path, [(x, torch.cat([mode(1, 1), mode(1, 1)]))])
    (site,) = found["sites"]
    assert (sum(site["rows"]), site["rows_left_out"]) == (1, 1)
    assert site["kept"][2] == pytest.approx(1)


@quiet
def test_what_cannot_be_restored_is_named(tmp_path):
    found, _ = measured(tmp_path, [(mode(1, 1), None)])
    assert (found["sites"], found["not_measured"]) == ([], ["transformer_blocks.1, self_attn"])


@quiet
def test_a_run_with_nothing_to_do_keeps_the_file_that_is_there(tmp_path):
    measured(tmp_path, [(mode(1, 1), mode(1, 1))])
    before = (tmp_path / "frequency_response.json").read_bytes()
    measured(tmp_path, [(None, None)])
    assert (tmp_path / "frequency_response.json").read_bytes() == before


@quiet
def test_nothing_is_left_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError, match="boom"):
        measured(tmp_path, [(mode(1, 1), mode(1, 1)), (None, "boom")])
    assert not (tmp_path / "frequency_response.json").exists()


@pytest.mark.parametrize("arguments", [{"batches": 0}, {"bands": 0}, {"timestep_bands": -1}])
def test_numbers_that_are_not_positive_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        FrequencyResponse(**arguments)


@quiet
def test_records_are_the_same_bits_and_the_network_is_as_it_was(tmp_path):
    found = {}
    for name in ("with", "without"):
        compressor = LGTM(ratio=0.5)
        model = DiffusionClassifier(DiT("shapes_dit"), trials=[1, 2], keep=[2, 1])
        model.backbone.load()
        before = snapshot(model.backbone.denoiser)
        measuring = [FrequencyResponse(batches=1)] if name == "with" else []
        trainer = Trainer(
            callbacks=[compressor, *measuring, PredictionWriter()], default_root_dir=tmp_path / name, logger=False,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = ShapeTextures(images=4, batch_size=2)
        trainer.predict(model, datamodule=data, return_predictions=False)
        assert snapshot(model.backbone.denoiser) == before
        assert compressor.onlookers == []
        found[name] = read_records(tmp_path / name / "predictions")
    assert found["with"].keys() == found["without"].keys()
    for image_id, record in found["with"].items():
        other = found["without"][image_id]
        assert (record.errors, record.survivors) == (other.errors, other.survivors)
        assert record.prediction == other.prediction
    response = json.loads((tmp_path / "with/frequency_response.json").read_text())
    assert (response["images"], len(response["sites"])) == (2, 4)
    for site in response["sites"]:
        # A mean over tokens keeps the mean of the map nearly, and loses energy elsewhere.
        assert np.nansum(np.array(site["error"])) > 0
        assert all(0 < kept < 1.5 for kept in site["kept"])
