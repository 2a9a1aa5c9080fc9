"""The diffusion classifier against an exhaustive loop, and what its numbers may not depend on."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from graphs import on_cpu  # noqa: F401 -- a fixture
from lightning.pytorch.callbacks import Callback
from trainers import quiet_trainer

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.cuda_graphs import graphs_of
from bigain.callbacks import SampleWriter
from bigain.compressors import IEKVD, LGTM, ToMe
from bigain.data import ShapeTextures
from bigain.diffusion.racing import Race
from bigain.diffusion.trials import keys_of_trials, random_order, trial_grid, trial_keys, trial_noise
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler
from bigain.tasks.results_writer import ResultsWriter
from bigain.tokens.randomness import stable_hash


def run(*callbacks, images=3, batch_size=2, backbone=None, precision="32-true", data=None, **settings):
    """Records by image, as Lightning returns them."""
    module = DiffusionClassifier(backbone or DiT("shapes_dit"), **settings)
    data = data or ShapeTextures(images=images, batch_size=batch_size)
    batches = quiet_trainer(*callbacks, precision=precision).predict(module, datamodule=data)
    return {record.image_id: record for batch in batches for record in batch}


def exhaustive(backbone, image_id, image, trials, seed, classes=16):
    """Every class at every trial, one row at a time, straight from the protocol."""
    latents = backbone.encode(image[None])
    table = torch.empty(classes, trials)
    for j, t in enumerate(trial_grid(trials)):
        key = trial_keys(torch.tensor([stable_hash(image_id)]), torch.tensor([j]), seed)
        noise = trial_noise(key, latents.shape[1:])
        abar = backbone.parametrisation.alpha_bar(torch.tensor([t]))
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        for label in range(classes):
            predicted = backbone.predict_target(
                noisy, torch.tensor([t]), backbone.conditions([""] * 16, range(16))[[label]], "epsilon"
            )
            table[label, j] = (noise - predicted).square().mean()
    return table


def errors_by_pair(record):
    """Error of each (class, trial) of an image."""
    return dict(zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True))


def test_the_data_of_a_finished_generation_classify_as_well(tmp_path):
    """The sampler reads no images, and its images are done."""
    backbone, data, short = DiT("shapes_dit"), ShapeTextures(images=1), {"trials": [1], "keep": [1]}
    expected = run(backbone=backbone, **short, images=1)
    sampler = DiffusionSampler(backbone, DDIMScheduler, steps=1, guidance=1)
    for _ in range(2):
        trainer = quiet_trainer(SampleWriter(resume=True), default_root_dir=tmp_path)
        trainer.predict(sampler, datamodule=data, return_predictions=False)
    records = run(backbone=backbone, data=data, **short)
    assert {i: record.errors for i, record in records.items()} == {i: record.errors for i, record in expected.items()}


@torch.inference_mode()
def test_keep_null_agrees_with_an_exhaustive_loop():
    backbone = DiT("shapes_dit")
    records = run(backbone=backbone, trials=[1, 2], keep=None, images=2, seed=3)
    data = ShapeTextures(images=2)
    data.setup("predict")
    for item in data.items:
        expected = exhaustive(backbone, item.image_id, data.read_image(item), 2, 3)
        record = records[item.image_id]
        got = torch.full((16, 2), torch.nan)
        got[record.classes, record.trials] = torch.tensor(record.errors)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        assert record.prediction == expected.mean(1).argmin()


def test_some_classes_keep_their_labels_in_the_model(tmp_path):
    """Of a network that is conditioned on labels."""
    path = tmp_path / "classes.txt"
    module, whole = DiffusionClassifier(DiT("shapes_dit")), ShapeTextures().class_space
    module.backbone.load()
    path.write_text("".join(f"{whole.names[label]}\n" for label in (5, 3, 1)))
    module.trainer = SimpleNamespace(datamodule=ShapeTextures(classes=str(path)))
    module.on_predict_start()
    assert module.conditions.tolist() == [1, 3, 5]


def test_staged_pruning_evaluates_what_the_protocol_says():
    full = run(trials=[2, 4], keep=None, images=2)
    for image_id, record in run(trials=[2, 4], keep=[3, 1], images=2).items():
        errors = errors_by_pair(full[image_id])
        for label, trial, error in zip(record.classes, record.trials, record.errors, strict=True):
            assert error == pytest.approx(errors[label, trial], rel=1e-4)
        assert len(record.errors) == 16 * 2 + 3 * 2
        assert [len(stage) for stage in record.survivors] == [3, 1]
        assert record.survivors[-1] == [record.prediction]
        # Stage one: the middle of each half of the grid of 4; stage two: the rest, for survivors only.
        assert {t for t, c in zip(record.timesteps, record.classes, strict=True) if c not in record.survivors[0]} == {
            trial_grid(4)[1],
            trial_grid(4)[3],
        }


@pytest.mark.parametrize("compressor", [ToMe, IEKVD])
def test_forwards_hold_rows_of_timesteps_that_are_compressed_alike(compressor):
    """Bit for bit: each error is that of a run that is compressed at all timesteps, or at none."""
    strength = {"ratio": 0.5} if compressor is ToMe else {"factor": 2}
    settings = {"trials": [3], "keep": None, "images": 2}
    never, always = run(**settings), run(compressor(**strength), **settings)
    assert ResultsWriter().timesteps(None, list(never.values())) == dict.fromkeys(trial_grid(3), 2 * 16)
    for image_id, record in run(compressor(**strength, during=[200, 699]), **settings).items():
        pairs = [(records[image_id].errors, records[image_id].timesteps) for records in (never, always)]
        assert pairs[0][1] == pairs[1][1] == record.timesteps
        expected = [pairs[200 <= step <= 699][0][i] for i, step in enumerate(record.timesteps)]
        assert list(record.errors) == expected != list(pairs[0][0])


STAGES = {"trials": [1, 2], "keep": [2, 1]}
RACE = {"trials": [4], "keep": [1], "race": Race(0.5)}


@pytest.mark.parametrize(
    ("settings", "compressor"),
    [({**STAGES, "bands": 3}, ToMe(ratio=0.5)), (RACE, LGTM(ratio=0.5))],
    ids=["bands-tome", "race-lgtm"],
)
def test_numbers_do_not_depend_on_batching_or_order(settings, compressor):
    settings = {**settings, "seed": 1}
    alone = run(compressor, images=2, batch_size=1, rows_per_forward=8, **settings)
    all_at_once = run(compressor, images=2, batch_size=2, rows_per_forward=64, **settings)
    fewer = run(compressor, images=2, batch_size=2, rows_per_forward=5, **settings)
    for image_id, record in alone.items():
        for field in ("prediction", "errors", "survivors", "bands"):
            assert getattr(record, field) == getattr(all_at_once[image_id], field)
        # Forwards of other sizes round differently.
        assert record.errors == pytest.approx(fewer[image_id].errors, rel=1e-3)


def test_a_race_is_played_with_the_errors_of_the_exhaustive_run():
    full = run(trials=[4], keep=None, images=2, seed=2)
    for image_id, record in run(trials=[2, 4], race=Race(0.3), images=2, seed=2).items():
        (order,) = random_order(keys_of_trials([image_id], 4, 2)).tolist()
        errors = errors_by_pair(full[image_id])
        alive, expected = range(16), set()
        for new, left in zip([order[:2], *([j] for j in order[2:])], record.survivors, strict=False):
            expected |= {(k, j) for k in alive for j in new}
            alive = left
        assert set(zip(record.classes, record.trials, strict=True)) == expected
        assert len(expected) < 16 * 4
        assert all(errors[c, j] == e for c, j, e in zip(record.classes, record.trials, record.errors, strict=True))
        assert record.timesteps == [trial_grid(4)[j] for j in record.trials]
        assert record.survivors[-1] == [record.prediction]


@pytest.mark.parametrize("settings", [STAGES, {**STAGES, "keep": None, "timesteps": "uniform"}, RACE])
def test_further_noises_and_bands_leave_the_first_as_it_is(settings):
    settings = {**settings, "images": 1, "seed": 2}
    full = run(**{**settings, "keep": None, "race": None})
    for image_id, record in run(**settings, noises=2, bands=3).items():
        size, known, errors = max(settings["trials"]), errors_by_pair(full[image_id]), errors_by_pair(record)
        first = {pair: error for pair, error in errors.items() if pair[1] < size}
        assert first
        assert all(known[pair] == error for pair, error in first.items())
        # Further ones have their own noise at the same timesteps.
        times = dict(zip(record.trials, record.timesteps, strict=True))
        repeated = {(label, trial): error for (label, trial), error in errors.items() if trial >= size}
        assert repeated
        for (label, trial), error in repeated.items():
            assert error != errors.get((label, trial - size))
            assert times[trial] == times.get(trial - size, times[trial])
        # By Parseval.
        assert [sum(parts) for parts in record.bands] == pytest.approx(record.errors, rel=1e-5)
    if settings.get("race") is None:
        stages = 2 if settings["keep"] else 1
        assert len(record.survivors) == stages
        assert len(errors) == 2 * (16 * 1 + 2 * 1 if stages == 2 else 16 * 2)


def test_errors_are_float32_when_the_network_is_bf16():
    settings = {"trials": [1, 2], "keep": None, "images": 1}
    (record,), (full,) = run(**settings, precision="bf16-true").values(), run(**settings).values()
    errors = torch.tensor(record.errors)
    assert not torch.equal(errors.bfloat16().float(), errors)
    torch.testing.assert_close(errors, torch.tensor(full.errors), rtol=0.2, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": [5]}, "2 stages"),
        ({"keep": [5, 2]}, "ending in 1"),
        ({"trials": [20, 5]}, "ascending"),
        ({"keep": [1, 5, 1], "trials": [1, 2, 3]}, "not grow"),
        ({"rows_per_forward": 0}, "rows_per_forward"),
        ({"loss": "l3"}, "l2, l1, huber"),
        ({"timesteps": "odd"}, "grid, uniform"),
        ({"budget": "half"}, "cumulative, released"),
        ({"noises": 0}, "noises must be at least 1"),
        ({"weights": [1.0]}, "20 numbers"),
        ({"weights": [-1.0] * 20}, "at least 0"),
        ({"weights": "even"}, "weights must be one of uniform, snr"),
        ({"weights": [1.0] * 20, "timesteps": "uniform"}, "timesteps: grid"),
        ({"bands": 8, "loss": "l1"}, "use loss: l2"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        DiffusionClassifier(DiT("shapes_dit"), **settings)


def test_bands_that_the_latents_cannot_fill_are_refused_before_any_image():
    with pytest.raises(InputError, match="bands must be at most 32, the shorter side of the latents, not 33"):
        run(bands=33)


def test_evaluations_per_image_are_5k_plus_75():
    module = DiffusionClassifier(DiT("shapes_dit"))
    assert [module.evaluations_per_image(k) for k in (37, 80, 100)] == [260, 475, 575]
    # A race ends earlier, but nobody knows when.
    assert DiffusionClassifier(DiT("shapes_dit"), race=Race()).evaluations_per_image(37) == 20 * 37


@pytest.mark.parametrize(("settings", "value"), [(STAGES, torch.nan), (RACE, torch.inf)], ids=["stages", "race"])
def test_an_image_whose_errors_are_not_finite_fails_alone(value, settings):
    class Overflow(Callback):
        """Breaks what the network says of the sixth class in the second image."""

        def __init__(self):
            self.failed = {}

        def on_predict_start(self, trainer, pl_module):
            predict, calls = pl_module.backbone.predict, iter(range(1000))
            # Sixteen classes in forwards of eight rows: the second image comes after two forwards per trial.
            broken_call = 2 if settings is STAGES else 4

            def broken(noisy, timesteps, condition):
                output = predict(noisy, timesteps, condition)
                if next(calls) == broken_call:
                    output[5] = value
                return output

            pl_module.backbone.predict = broken

        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            self.failed.update(batch["failed"])

    overflow = Overflow()
    assert list(run(overflow, images=2, batch_size=2, **settings)) == ["test/000000"]
    first = random_order(keys_of_trials(["test/000001"], 4, 0))[0, 0]
    timestep = 750 if settings is STAGES else trial_grid(4)[first]
    message = f"error for class 'vertically striped square' at timestep {timestep} is {value} at precision 32-true"
    assert [*overflow.failed] == ["test/000001"]
    assert f"{message}; try other weights" in overflow.failed["test/000001"]


@pytest.mark.usefixtures("on_cpu")
def test_graphs_change_nothing():
    """Classes are dropped, so the groups of rows change."""
    backbone, settings = DiT("shapes_dit", cuda_graph=True), {"trials": (1, 2), "keep": (4, 1)}
    expected, actual = run(LGTM(ratio=0.5), **settings), run(LGTM(ratio=0.5), backbone=backbone, **settings)
    for image_id, record in expected.items():
        assert (actual[image_id].errors, actual[image_id].survivors) == (record.errors, record.survivors)
    assert graphs_of(backbone.denoiser).replays > 0


class Fails(Callback):
    def on_predict_batch_end(self, *args, **kwargs):
        raise RuntimeError("on purpose")


def test_a_run_that_fails_leaves_no_hooks_behind(monkeypatch):
    backbone, moved = StableDiffusion("shapes_unet"), []
    backbone.load()
    monkeypatch.setattr(backbone.text_encoder, "to", moved.append)
    settings = {"images": 1, "trials": (1, 2), "keep": (2, 1), "backbone": backbone}
    with pytest.raises(RuntimeError, match="on purpose"):
        run(Fails(), **settings)
    modules = list(backbone.denoiser.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    # Once the prompts are encoded, a GPU has room for other things.
    assert moved == ["cpu"]
