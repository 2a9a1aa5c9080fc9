"""The feature probe: what its numbers are, and that they depend on nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from trainers import quiet_trainer

from bigain.backbones import DiT, StableDiffusion
from bigain.callbacks import FeatureResults, PredictionWriter
from bigain.commands.compare import compare_runs
from bigain.commands.main import main
from bigain.commands.report import report
from bigain.compressors import ToMe
from bigain.data import ShapeTextures
from bigain.diffusion.trials import trial_noise
from bigain.errors import InputError
from bigain.modules import FeatureProbe
from bigain.runs.columns import read_columns
from bigain.runs.logs import read_records
from bigain.runs.records import FeatureRecord
from bigain.tasks.scoring import add_baseline


def run(folder, images=5, batch=16, compressor=None, writer=None, **settings):
    settings = {"timesteps": [100, 700], "sites": [1, 3], **settings}
    probe = FeatureProbe(DiT("shapes_dit"), **settings)
    callbacks = [writer or PredictionWriter(), FeatureResults(), *([compressor] if compressor else [])]
    trainer = quiet_trainer(*callbacks, default_root_dir=folder)
    trainer.predict(probe, ShapeTextures(images=images, batch_size=batch), return_predictions=False)
    return read_records(Path(folder) / "predictions", FeatureRecord), probe


def test_features_are_block_outputs_at_the_noise_of_image_and_timestep(tmp_path):
    log, probe = run(tmp_path, images=2, pool="grid")
    backbone, data = probe.backbone, ShapeTextures(images=2)
    data.setup("predict")
    seen = []
    handle = backbone.denoiser.transformer_blocks[3].register_forward_hook(lambda m, a, output: seen.append(output))
    x = backbone.encode(data.read_image(data.items[1])[None])
    noise = trial_noise(probe.keys_of([data.items[1].image_id])[:, 1], x.shape[1:])
    noisy = backbone.parametrisation.add_noise(x, noise, torch.tensor([700]))
    with torch.no_grad(), handle:
        backbone.predict(noisy, torch.tensor([700]), torch.tensor([16]))
    maps = seen[0][0].view(16, 16, -1).double().numpy()
    record = log[data.items[1].image_id]
    assert {*record.features} == {"1@100", "1@700", "3@100", "3@700"}
    cells = maps.reshape(4, 4, 4, 4, -1).mean((1, 3))
    np.testing.assert_allclose(record.features["3@700"].reshape(-1, 4, 4), cells.transpose(2, 0, 1), rtol=0, atol=1e-4)
    energy = np.square(scipy.fft.dctn(maps, axes=(0, 1), norm="ortho")).sum(2)
    u, v = np.mgrid[:16, :16]
    high = energy[u**2 + v**2 >= 16**2 / 2].sum() / (energy.sum() - energy[0, 0])
    assert record.high_frequency["3@700"] == pytest.approx(high, rel=1e-4)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(record.features["3@700"], record.features["3@100"], rtol=0, atol=1e-2)


def test_neither_the_batch_nor_the_other_timesteps_nor_a_resumed_run_change_a_bit(tmp_path):
    whole, _ = run(tmp_path / "a", compressor=ToMe(ratio=0.5))
    other = {"batch": 2, "timesteps": [700], "sites": [3]}
    run(tmp_path / "b", images=3, compressor=ToMe(ratio=0.5), **other)
    resumed, _ = run(tmp_path / "b", compressor=ToMe(ratio=0.5), writer=PredictionWriter(resume=True), **other)
    plain, _ = run(tmp_path / "c", images=1)
    for image_id, record in whole.items():
        assert record.features["3@700"].tobytes() == resumed[image_id].features["3@700"].tobytes()
        assert record.high_frequency["3@700"] == resumed[image_id].high_frequency["3@700"]
    assert json.loads((tmp_path / "b/results.json").read_text())["timing"]["resumed_images"] == 3
    first = next(iter(plain))
    assert not np.allclose(plain[first].features["3@700"], whole[first].features["3@700"], atol=1e-3)
    ids, column = read_columns(tmp_path / "a", "image_id", "features/3@700")
    assert ids.tolist() == sorted(whole)
    assert column.tobytes() == np.stack([whole[i].features["3@700"] for i in ids]).tobytes()


def test_settings_that_cannot_be_are_refused(tmp_path):
    for settings, words in (
        ({"timesteps": [3, 3]}, r"different integers in 0..999, not \[3, 3\]"),
        ({"timesteps": [1000]}, "0..999"),
        ({"sites": []}, "sites must be different"),
        ({"pool": "max"}, "pool"),
    ):
        with pytest.raises(InputError, match=words):
            FeatureProbe(DiT("shapes_dit"), **settings)
    with pytest.raises(InputError, match="compile and cuda_graph"):
        FeatureProbe(DiT("shapes_dit", compile="regional"))
    with pytest.raises(InputError, match="sites: 4 is no block of DiTTransformer2DModel, which has 0 to 3"):
        run(tmp_path, sites=[0, 4])


def test_the_middle_block_of_a_u_net_is_on_the_way_up():
    probe = FeatureProbe(StableDiffusion("shapes_unet"), timesteps=[10])
    probe.backbone.load()
    probe.check_fit(ShapeTextures(images=2))
    assert [site.name for site in probe.blocks] == ["up_blocks.1.attentions.0.transformer_blocks.0"]


QUICK = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.images=20", "--model.timesteps=[200]"]
QUICK += ['--model.train_data={"split": "train", "images": 24}', "--trainer.enable_progress_bar=false", "--inspect=0"]


@pytest.mark.usefixtures("elsewhere")
def test_commands(capsys):
    lgtm = ["predict", "--config", "demo_lgtm_features.yaml", *QUICK, "--output", "runs/lgtm"]
    assert main([*lgtm, "--baseline", "true"]) == 0
    found = json.loads(Path("runs/lgtm/results.json").read_text())
    assert found["task"] == "features"
    assert {"linear_probe", "linear_probe_fill", "knn", "cka", "cosine", "effective_rank"} <= {*found["metrics"]}
    assert 0.5 < found["metrics"]["cka"]["value"] < 1
    assert found["evaluations"]["per_image"] == 1
    assert found["flops"]["gflops_per_evaluation"] < found["flops"]["baseline_gflops"]
    compared = compare_runs(Path("runs/lgtm/baseline"), [Path("runs/lgtm")]).text
    assert "Linear probe: " in compared
    assert "kNN accuracy: " in compared
    assert report([Path("runs")], output=Path("report")).complete
    page = Path("report/report.md").read_text()
    assert ".train" not in page
    for words in ("Linear probe (%)", "s/image probed", "Further metrics of features"):
        assert words in page
    assert page.count("Linear probe (points)") == page.count("kNN accuracy (points)") == 1
    assert read_columns(Path("runs/lgtm/.train"), "image_id")[0].tolist() == [f"train/{i:06d}" for i in range(24)]
    (prediction,) = read_columns(Path("runs/lgtm"), "prediction/linear_probe")
    assert found["metrics"]["linear_probe"]["value"] == (prediction == np.arange(20) % 16).mean()
    found["protocol"]["timesteps"] = [300]
    Path("runs/lgtm/results.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"differ in timesteps \(\[300\] and \[200\]\)"):
        add_baseline(Path("runs/lgtm"), Path("runs/lgtm/baseline"))
    capsys.readouterr()
    assert main([*lgtm[:-1], "other", "--model.train_data", "{split: trial}"]) == 2
    message = capsys.readouterr().err
    assert "error: split: expected one of train, val, test, not" in message
    assert "(in the run on model.train_data)" in message
    assert main([*lgtm[:-1], "other", "--model.sites", "[9]"]) == 2
    assert "error: sites: 9 is no block of DiTTransformer2DModel, which has 0 to 3" in capsys.readouterr().err
