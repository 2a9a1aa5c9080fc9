"""Generated images on disk: one per id, ahead of their log, made again where they are gone."""

import json

import numpy as np
import pytest
from diffusers import DDIMScheduler
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import quiet_trainer

from bigain.backbones import DiT
from bigain.callbacks import GenerationResults, SampleWriter
from bigain.commands.score import score
from bigain.data import ShapeTextures
from bigain.data.images import sheet
from bigain.data.selection import Item
from bigain.errors import InputError
from bigain.metrics import ShapeFeatures
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.modules import DiffusionSampler
from bigain.runs.results import read_results, write_results

IDS = [f"test/{i:06d}" for i in range(4)]


class Counted(DiffusionSampler):
    """Remembers which images it made."""

    def generate(self, image_ids, condition):
        self.__dict__.setdefault("made", []).extend(image_ids)
        return super().generate(image_ids, condition)


@pytest.fixture(scope="module")
def backbone():
    return DiT("shapes_dit")


@pytest.fixture
def run(tmp_path, backbone):
    """Generates four images in batches of two into `tmp_path`; returns the ids that were made."""

    def start(resume=True, data=None, logger=False, **settings):
        module = Counted(backbone, DDIMScheduler, steps=1, guidance=1.0, **settings)
        trainer = quiet_trainer(
            SampleWriter(resume=resume),
            GenerationResults(),
            logger=TensorBoardLogger(tmp_path, name="tensorboard", version="") if logger else False,
            default_root_dir=tmp_path,
        )
        data = data or ShapeTextures(images=4, batch_size=2)
        trainer.predict(module, datamodule=data, return_predictions=False)
        return module.__dict__.get("made", [])

    return start


def log_of(folder):
    return folder / "predictions/rank-0.jsonl"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_are_named_by_id_and_logged_and_what_is_not_finished_is_generated_again(tmp_path, run):
    assert run() == IDS
    assert sorted(contents(tmp_path / "samples")) == [f"{image_id}.png" for image_id in IDS]
    lines = [json.loads(line) for line in log_of(tmp_path).read_text().splitlines()]
    assert [line["image_id"] for line in lines] == IDS
    with Image.open(tmp_path / "samples/test/000000.png") as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    before = contents(tmp_path / "samples")
    assert run() == []
    (tmp_path / "samples/test/000002.png").unlink()
    assert run() == [IDS[2]]
    # A kill between image and line, in the middle of a line, and before the first one.
    lines = log_of(tmp_path).read_text().splitlines(keepends=True)
    for log, left in (("".join(lines[:2]) + lines[2][:50], IDS[2:]), ("", IDS)):
        log_of(tmp_path).write_text(log)
        (tmp_path / "samples/test/.000003.png.1.tmp").write_bytes(b"half")
        assert run() == left
        assert contents(tmp_path / "samples") == before
    log_of(tmp_path).unlink()
    with pytest.raises(InputError, match="holds other images"):
        run(resume=False)


@pytest.mark.parametrize("name", ["holiday.png", "test/000000.jpg"])
def test_a_folder_with_other_images_is_refused(tmp_path, run, name):
    path = tmp_path / "samples" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(InputError, match="holds other images"):
        run()
    assert list(contents(tmp_path / "samples")) == [name]


class TwoCases(ShapeTextures):
    def find_items(self):
        return [Item("a/Ü x", (0,)), Item("A/Ü X", (0,))]


def test_ids_that_share_a_file_where_case_is_ignored_are_refused_there(tmp_path, run):
    (tmp_path / ".LOCK-0").touch()
    with pytest.raises(InputError, match="differ only in upper and lower case"):
        run(data=TwoCases())
    (tmp_path / ".LOCK-0").unlink()
    assert len(run(data=TwoCases())) == len([*(tmp_path / "samples").rglob("*.png")]) == 2


def test_the_contact_sheet_is_in_tensorboard_and_its_letters_are_no_empty_boxes(tmp_path, run):
    run(logger=True)
    assert len({sheet([letter], []).tobytes() for letter in "éüłд"}) == 4
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["1 samples/contact_sheet"]


def test_a_finished_run_keeps_the_reference_and_the_metrics_that_score_took_and_says_so(tmp_path, run, caplog):
    """Repeated, it has no image left to measure."""
    run(extractor=ShapeFeatures(), reference="shapes_features")
    real = np.random.default_rng(0).standard_normal((80, 64)).astype(np.float32)
    ReferenceStatistics(Moments.of([real]), "shapes-features", source="mine").save(tmp_path / "mine.npz")
    before = read_results(tmp_path)
    score(tmp_path, reference=str(tmp_path / "mine.npz"))
    scored = read_results(tmp_path)
    assert scored["metrics"]["frechet[shapes-features]"] != before["metrics"]["frechet[shapes-features]"]
    assert scored["protocol"]["reference"]["source"] == "mine"
    assert run(extractor=ShapeFeatures(), reference="shapes_features") == []
    again = read_results(tmp_path)
    assert again["timing"]["resumed_images"] == 4
    assert (again["metrics"], again["protocol"]) == (scored["metrics"], scored["protocol"])
    assert "the distances in results.json remain those to mine; " in caplog.text
    assert f"`bigain score {tmp_path} --reference shapes_features`" in caplog.text


class Last(ShapeTextures):
    def find_items(self):
        return super().find_items()[2:]


def test_results_of_as_many_other_images_are_not_kept(tmp_path, run):
    settings = {"extractor": ShapeFeatures(), "reference": "shapes_features"}
    run(data=ShapeTextures(images=6), **settings)
    values = []
    for data in (ShapeTextures(images=4), Last(images=6), ShapeTextures(images=4)):
        assert run(data=data, **settings) == []
        values.append(read_results(tmp_path)["metrics"]["frechet[shapes-features]"]["value"])
    assert values[0] == values[2] != values[1]


def test_metrics_of_other_images_are_left_out_and_named(tmp_path, run, caplog):
    run()
    results = read_results(tmp_path)
    results["metrics"]["psnr"] = {"value": 20.0, "low": None, "high": None, "n": 4, "unit": "dB", "better": "higher"}
    write_results(tmp_path, results)
    run()
    assert "psnr" in read_results(tmp_path)["metrics"]
    assert "warning" not in caplog.text
    run(data=ShapeTextures(images=5, batch_size=2))
    assert "psnr" not in read_results(tmp_path)["metrics"]
    assert "results.json no longer has psnr, of other images; repeat `bigain score`" in caplog.text


class OtherPrompts(ShapeTextures):
    def generation_prompts(self):
        return [f"{prompt}!" for prompt in super().generation_prompts()]


def test_an_image_whose_prompt_changed_since_is_named(tmp_path, run):
    run()
    with pytest.raises(InputError, match="the label or the prompt of test/000000 changed since it was evaluated"):
        run(data=OtherPrompts(images=4, batch_size=2))


def test_an_image_that_was_broken_since_is_named(tmp_path, run):
    run()
    (tmp_path / "samples/test/000001.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*000001\.png: .*; delete it"):
        run()
