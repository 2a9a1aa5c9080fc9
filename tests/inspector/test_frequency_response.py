"""The frequency response against closed forms; measuring changes nothing and leaves nothing behind."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from models import snapshot, tiny_dit

from bigain.backbones import DiT
from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import layout_of
from bigain.callbacks import FrequencyResponse, PredictionWriter
from bigain.compressors import LGTM
from bigain.data import ShapeTextures
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier
from bigain.runs.logs import read_records
from bigain.tokens.frequency import dct_matrix

SIDE = 8


def measured(tmp_path, pairs, **arguments):
    """The response to a pair of token maps per batch, and which batches were watched."""
    compressor, response, watched = LGTM(ratio=0.5), FrequencyResponse(**arguments), []
    trainer = SimpleNamespace(callbacks=[compressor], world_size=1, is_global_zero=True, default_root_dir=tmp_path)
    site, batch = layout_of(tiny_dit()).sites[1], {"image_id": ["a", "b"]}
    response.on_predict_start(trainer, None)
    for before, restored in pairs:
        response.on_predict_batch_start(trainer, None, batch, 0)
        watched.append(bool(compressor.onlookers))
        if before is not None:
            context = ForwardContext.of(torch.zeros(len(before), 4, 16, 16), 500, None)
            compressor.show_compressed(site, "self_attn", before, lambda restored=restored: restored, context)
        response.on_predict_batch_end(trainer, None, None, batch, 0)
        assert not compressor.onlookers
    response.on_predict_end(trainer, None)
    return json.loads((tmp_path / "frequency_response.json").read_text()), watched


def mode(u, v):
    """A row with a single frequency. `(1, 64, 1)`."""
    return torch.outer(dct_matrix(SIDE)[u], dct_matrix(SIDE)[v]).flatten()[None, :, None]


def test_single_modes_have_their_energies(tmp_path):
    low, high = mode(0, 1), mode(7, 7)
    # Half of the high mode's amplitude is kept, a quarter of its energy; the error is the other half.
    response, _ = measured(tmp_path, [(3 * low + 2 * high + 5 * mode(0, 0), 3 * low + high + 5 * mode(0, 0))])
    (site,) = response["sites"]
    assert (site["name"], site["module"], site["grid"], site["channels"]) == (
        "transformer_blocks.1", "self_attn", [8, 8], 1
    )  # fmt: skip
    assert site["rows"] == 1
    assert sum(site["modes"]) == 64
    assert site["original"] == pytest.approx([25, 9, 0, 0, 0, 0, 0, 0, 4], abs=1e-12)
    assert site["compressed"] == pytest.approx([25, 9, 0, 0, 0, 0, 0, 0, 1], abs=1e-12)
    assert site["error"] == pytest.approx([0, 0, 0, 0, 0, 0, 0, 0, 1], abs=1e-12)
    assert (site["kept"][0], site["kept"][1], site["kept"][8]) == pytest.approx((1, 1, 0.25))
    assert (site["destroyed"][1], site["destroyed"][8]) == pytest.approx((0, 0.25), abs=1e-12)
    assert response["bands"][:3] == [0, 0.125, 0.25]


def test_rows_that_are_not_finite_do_not_count(tmp_path):
    """A run goes on without the images that fail."""
    x = torch.cat([mode(1, 1), torch.nan * mode(1, 1), mode(1, 1)])
    (site,) = measured(tmp_path, [(x, 0.5 * x)])[0]["sites"]
    assert site["rows"] == 2
    assert (site["original"][2], site["kept"][2]) == pytest.approx((1, 0.25))


def test_only_the_first_batches_are_watched_and_finished_ones_do_not_count(tmp_path):
    x = mode(1, 1)
    response, watched = measured(tmp_path, [(None, None), (x, x), (x, x), (x, 0 * x), (x, 0 * x)], batches=2)
    assert watched == [True, True, True, False, False]
    assert (response["batches"], response["images"], response["sites"][0]["rows"]) == (2, 4, 2)
    assert response["sites"][0]["destroyed"][2] == 0
    # A run with nothing left to do keeps the file.
    assert measured(tmp_path, [(None, None)])[0] == response


def test_modules_that_cannot_be_restored_are_named(tmp_path):
    response, _ = measured(tmp_path, [(mode(1, 1), None)])
    assert (response["sites"], response["not_measured"]) == ([], ["transformer_blocks.1, self_attn"])


def test_an_exception_ends_the_watch():
    compressor, response = LGTM(ratio=0.5), FrequencyResponse()
    trainer = SimpleNamespace(callbacks=[compressor], world_size=1)
    response.on_predict_start(trainer, None)
    response.on_predict_batch_start(trainer, None, {"image_id": ["a"]}, 0)
    assert compressor.onlookers == [response]
    response.on_exception(trainer, None, RuntimeError())
    assert not compressor.onlookers


@pytest.mark.parametrize("arguments", [{"batches": 0}, {"bands": -1}])
def test_numbers_that_are_not_positive_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        FrequencyResponse(**arguments)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")
def test_predictions_stay_bit_for_bit_and_the_network_is_restored(tmp_path):
    records = {}
    for name, measuring in (("with", [FrequencyResponse(batches=1)]), ("without", [])):
        compressor = LGTM(ratio=0.5)
        model = DiffusionClassifier(DiT("shapes_dit"), trials=[1, 2], keep=[2, 1])
        model.backbone.load()
        before = snapshot(model.backbone.denoiser)
        trainer = Trainer(
            callbacks=[compressor, *measuring, PredictionWriter()], default_root_dir=tmp_path / name, logger=False,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.predict(model, datamodule=ShapeTextures(images=4, batch_size=2), return_predictions=False)
        assert snapshot(model.backbone.denoiser) == before
        assert not compressor.onlookers
        lines = read_records(tmp_path / name / "predictions").items()
        records[name] = {image_id: (record.errors, record.survivors, record.prediction) for image_id, record in lines}
    assert records["with"] == records["without"]
    response = json.loads((tmp_path / "with/frequency_response.json").read_text())
    assert (response["images"], len(response["sites"])) == (2, 4)
    for site in response["sites"]:
        # Merging nearly keeps the mean of the map and loses energy elsewhere.
        assert np.nansum(np.array(site["error"])) > 0
        assert all(0 < kept < 1.5 for kept in site["kept"])
