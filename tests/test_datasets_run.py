"""Shipped configurations of every dataset end to end, on SD and on DiT stand-ins; skipped images; cached latents."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from bigain.commands.main import main
from bigain.data.class_names.coco import CATEGORIES
from bigain.data.class_names.imagenet import imagenet100_indices, wnids

QUICK = ["--model.trials", "[1,2]", "--model.keep", "[2,1]", "--data.image_size", "32", "--data.num_workers", "0"]
QUICK += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--model.backbone.dtype", "float32"]
QUICK += ["--model.rows_per_forward", "512", "--trainer.enable_progress_bar", "false", "--data.batch_size", "2"]


@pytest.fixture(scope="session")
def dit(tmp_path_factory):
    """Random models in the folder format of the released DiT, by number of classes."""

    def make(classes):
        folder = tmp_path_factory.mktemp("dit")
        torch.manual_seed(0)
        DiTTransformer2DModel(
            num_attention_heads=1,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=12,
            sample_size=16,
            num_embeds_ada_norm=classes,
        ).save_pretrained(folder / "transformer")
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        ).save_pretrained(folder / "vae")
        DDIMScheduler().save_pretrained(folder / "scheduler")
        # The released folders name the transformer as diffusers did before 0.28.
        index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "Transformer2DModel"]}
        index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return make


def photograph(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((50, 40), 60).convert("RGB").save(path)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Two images of one class of ImageNet-100 and one of class 0, which it does not have."""
    monkeypatch.chdir(tmp_path)
    chosen = imagenet100_indices()[3]
    for index, number in ((chosen, 1), (chosen, 2), (0, 3)):
        photograph(tmp_path / f"data/imagenet/val/{wnids()[index]}/ILSVRC2012_val_{number:08d}.JPEG")
    return tmp_path / "data/imagenet"


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """Three images: two labels, one label, none."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/coco"
    for number in (5, 7, 9):
        photograph(root / f"val2017/{number:012d}.jpg")
    pairs = [(7, 90), (5, 1), (7, 1)]
    content = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (9, 5, 7)],
        "annotations": [{"image_id": image, "category_id": category} for image, category in pairs],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


def predict(config, model, *args):
    return main(["predict", "--config", config, *QUICK, "--model.backbone.model", str(model), "--output", "out", *args])


def results():
    return json.loads(Path("out/results.json").read_text())


def records():
    lines = Path("out/predictions/rank-0.jsonl").read_text().splitlines()
    return {record["image_id"]: record for record in map(json.loads, lines)}


def errors():
    return {image_id: record["errors"] for image_id, record in records().items()}


def test_imagenet100_on_a_dit_is_asked_for_imagenet_indices(dit, imagenet):
    assert predict("imagenet100_dit_lgtm.yaml", dit(1000), "--model.trials", "[1]", "--model.keep", "[1]") == 0
    content = results()
    assert content["dataset"] == {
        "name": "ImageNet-100",
        "images": 2,
        "asked": 2,
        "official": 5000,
        "classes": 100,
        "image_size": 32,
        "unlabelled": 0,
        "skipped": [],
    }
    assert [site["index"] for site in content["sites"]] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert {record["label"] for record in records().values()} == {3}


def test_imagenet1k_on_sd_with_options_before_the_configuration(stand_in, imagenet):
    """Of few classes: a thousand take long. Both missiles are among them."""
    Path("classes.txt").write_text("".join(f"{wnids()[index]}\n" for index in (0, 1, 657, 744)))
    args = [*QUICK, "--model.backbone.model", str(stand_in), "--data.classes", "classes.txt", "--output", "out"]
    assert main(["predict", *args, "--config", "imagenet1k_tome.yaml"]) == 0
    assert set(records()) == {"ILSVRC2012_val_00000003"}
    assert results()["class_names"] == ["tench", "goldfish", "missile", "missile"]
    assert set(results()["metrics"]) == {"top1", "top1_merged"}


def test_coco_on_sd(stand_in, coco, capsys):
    assert predict("coco_todo.yaml", stand_in) == 0
    output = capsys.readouterr().out
    content = results()
    precisions = {name: estimate["n"] for name, estimate in content["metrics"].items()}
    averaged = dict.fromkeys(("map_macro", "map_sample", "map_released"), 2)
    assert precisions == {"top1_precision": 2, "top1_precision_all": 3, **averaged}
    assert content["dataset"]["unlabelled"] == 1
    assert "1 image, left out of the metrics" in output
    assert {image_id: record["label"] for image_id, record in records().items()} == {"5": [0], "7": [0, 79], "9": []}
    columns = np.load("out/predictions/predictions.npz")
    assert columns["label"].shape == (3, 80)
    assert columns["label"].sum(axis=1).tolist() == [1, 2, 0]


def test_coco_on_a_dit_of_other_classes(dit, coco, capsys):
    assert predict("coco_lgtm.yaml", dit(1000), "--model", "models/dit_xl_512.yaml") == 2
    assert "the model has 1000 classes, the dataset 80 different ones" in capsys.readouterr().err


def test_items_without_a_class_are_not_generated_as_the_first_one(dit, coco, capsys):
    model = ["--model", "models/dit_xl_512_generation.yaml", "--model.backbone.model", str(dit(80))]
    quick = ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--data.image_size", "32"]
    assert main(["predict", "--config", "coco_lgtm_generation.yaml", *model, *quick, "--output", "out"]) == 2
    assert "generates images of classes; 1 item without one, such as 9" in capsys.readouterr().err


def test_a_bad_image_can_be_skipped_and_is_tried_again(stand_in, pets, capsys):
    broken = pets / "images" / "American_Bulldog_7.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    assert predict("pets_lgtm.yaml", stand_in, "--data.batch_size", "1") == 2
    assert "American_Bulldog_7.jpg" in capsys.readouterr().err
    assert list(errors()) == ["images/Abyssinian_7.jpg"]
    # Skipping changes no number, so the same run goes on.
    assert predict("pets_lgtm.yaml", stand_in, "--data.on_bad_image", "skip") == 1
    content = results()
    assert content["dataset"]["images"] == 2
    assert [entry["image_id"] for entry in content["dataset"]["skipped"]] == ["images/American_Bulldog_7.jpg"]
    assert "skipped" in capsys.readouterr().out
    broken.write_bytes(whole)
    assert predict("pets_lgtm.yaml", stand_in) == 0
    assert results()["dataset"]["skipped"] == []
    assert results()["dataset"]["images"] == 3
    for path in (pets / "images").glob("*.jpg"):
        path.write_bytes(b"")
    skipping = ["--data.on_bad_image", "skip", "--overwrite", "true"]
    assert predict("pets_lgtm.yaml", stand_in, *skipping) == 2
    assert "none of the 3 images" in capsys.readouterr().err


def test_the_example_of_the_readme(stand_in, pets, capsys):
    """The tokens follow the image size; the trainer's precision overrides the dtype of loading."""
    args = ["--data.image_size", "24", "--model.backbone.dtype", "float16", "--data.num_workers", "1"]
    assert predict("pets_lgtm.yaml", stand_in, *args) == 0
    output = capsys.readouterr().out
    for words in ("Oxford-IIIT Pets, 3 images, 37 classes", "tokens 144 -> 72", "species"):
        assert words in output
    assert [record["label"] for record in records().values()] == [0, 1, 36]
    assert all(len(record["errors"]) == 37 + 2 for record in records().values())
    content = results()
    assert content["environment"]["network_dtype"] == "torch.float32"


def test_cached_latents_give_the_same_numbers_without_reading_images(stand_in, pets, tmp_path, monkeypatch):
    """Also at half precision, where Lightning rounds the floats of a batch; a different VAE does not use the cache."""
    # Pictures show the images.
    cached = ["--model.latent_cache", "latents", "--overwrite", "true", "--inspect", "0"]
    half = ["--trainer.precision", "bf16-true", "--data.limit", "1"]
    assert predict("pets_lgtm.yaml", stand_in, *half) == 0
    plain = errors()
    assert predict("pets_lgtm.yaml", stand_in, *half, *cached) == 0
    assert errors() == plain
    assert len(list(Path("latents").rglob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *args: pytest.fail("an image was decoded"))
        assert predict("pets_lgtm.yaml", stand_in, *half, *cached) == 0
    assert errors() == plain
    other = shutil.copytree(stand_in, tmp_path / "other")
    weights = other / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: 1.01 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    assert predict("pets_lgtm.yaml", other, *half, *cached) == 0
    assert len(list(Path("latents").rglob("*.safetensors"))) == 2
    assert errors() != plain


def test_a_pixel_space_model_has_nothing_to_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--data.images", "1", "--trainer.accelerator", "cpu", "--model.latent_cache", "latents"]
    assert main(["predict", "--config", "demo_none.yaml", *args]) == 0
    assert not Path("latents").exists()


def test_your_own_folder_and_model_in_one_file(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("felis_catus/a.png", "canis/b.jpg"):
        photograph(tmp_path / "photos" / name)
    Path("names.txt").write_text("felis_catus\tcat\ncanis\tdog\n")
    Path("mine.yaml").write_text(f"""
seed: 0
model:
  class_path: bigain.modules.DiffusionClassifier
  init_args:
    backbone:
      class_path: bigain.backbones.StableDiffusion
      init_args: {{model: {stand_in}}}
    trials: [1, 2]
    keep: [2, 1]
data:
  class_path: bigain.data.ImageFolder
  init_args:
    {{root: photos, class_names: names.txt, prompt: "a picture of a {{}}", image_size: 32, num_workers: 0}}
compressor:
  class_path: bigain.compressors.LGTM
  init_args: {{ratio: 0.5}}
trainer: {{accelerator: cpu, precision: 32-true, devices: 1}}
""")
    assert main(["predict", "--config", "mine.yaml", "--output", "out"]) == 0
    assert results()["class_names"] == ["cat", "dog"]
    assert {i: record["label"] for i, record in records().items()} == {"canis/b.jpg": 1, "felis_catus/a.png": 0}
    # Labels of finished images would mean something else.
    Path("names.txt").write_text("felis_catus\tcat\ncanis\twolf\n")
    assert main(["predict", "--config", "mine.yaml", "--output", "out"]) == 2
    assert "the classes of the dataset are not those" in capsys.readouterr().err
