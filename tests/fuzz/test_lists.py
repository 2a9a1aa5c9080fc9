"""Damaged lists of datasets: image ids, classes, annotations. A set-up dataset or an InputError, nothing else."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, damaged_json, forms, fuzzed, in_time, naming, put
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat

from bigain.data import Coco2017, ImageFolder, ImageNet1K, OxfordPets
from bigain.data.class_names.coco import CATEGORIES
from bigain.data.class_names.imagenet import wnids
from bigain.data.class_names.pets import BREEDS
from bigain.data.images import sample_path
from bigain.data.latent_cache import LatentCache
from bigain.metrics.reference import ReferenceStatistics

READ = {"image_size": 8, "num_workers": 0, "batch_size": 4, "on_bad_image": "skip"}
VAL = [f"ILSVRC2012_val_{i:08d}" for i in (1, 2, 3)]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(path)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Three images of each dataset with its lists."""
    root = tmp_path_factory.mktemp("data")
    names = [f"{BREEDS[label].replace(' ', '_')}_7" for label in (0, 1, 36)]
    for i, name in enumerate(names):
        picture(root / "pets/oxford-iiit-pet/images" / f"{name}.jpg")
        picture(root / "folder" / "abc"[i] / f"{i}.png")
        picture(root / "coco/val2017" / f"{i + 1:012d}.jpg")
        picture(root / "imagenet/val" / f"{VAL[i]}.JPEG")
    lines = [f"{name} {label + 1} 1 1\n" for name, label in zip(names, (0, 1, 36), strict=True)]
    write(root / "pets/oxford-iiit-pet/annotations/test.txt", "".join(lines))
    write(root / "names.txt", "a\tant\nb\tbee\nc\tcat\n")
    write(root / "subset.txt", "a/0.png\nc/2.png\n")
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (1, 2, 3)]
    labels = [{"image_id": 1, "category_id": 1}, {"image_id": 1, "category_id": 90}, {"image_id": 3, "category_id": 2}]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    found = {"images": images, "annotations": labels, "categories": categories[:3]}
    write(root / "coco/annotations/instances_val2017.json", json.dumps(found))
    captions = [{"image_id": i, "caption": f"caption {i}"} for i in (1, 2, 3)]
    write(root / "coco/annotations/captions_val2017.json", json.dumps({"annotations": captions}))
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def survey(data, *named):
    """Set a dataset up, read it all and ask for its prompts; every item is read or skipped with a reason."""
    with naming(*named):
        data.setup("predict")
        assert len(data.generation_prompts()) == len(data.items)
        batches = list(data.predict_dataloader())
        seen = [image_id for batch in batches for image_id in (*batch["image_id"], *batch["failed"])]
        assert sorted(seen) == sorted(item.image_id for item in data.items)


@pytest.fixture
def damage(roots, tmp_path_factory):
    """Gives a copy of a dataset in which one list is damaged."""

    def made(data, name, strategy=damaged):
        root = tmp_path_factory.mktemp("damaged") / "data"
        shutil.copytree(roots, root)
        put(root / name, data.draw(strategy((roots / name).read_bytes()) | forms))
        return root

    return made


@fuzzed(60)
@given(st.data())
def test_pets(damage, data):
    root = damage(data, "pets/oxford-iiit-pet/annotations/test.txt")
    survey(OxfordPets(str(root / "pets"), **READ), root, "Oxford-IIIT Pets")


@fuzzed(60)
@given(st.data())
def test_class_names_and_subset(damage, data):
    name = data.draw(st.sampled_from(["names.txt", "subset.txt"]))
    root = damage(data, name)
    lists = {"class_names": str(root / "names.txt"), "subset": str(root / "subset.txt")}
    survey(ImageFolder(str(root / "folder"), **lists, **READ), root / name, "ImageFolder")


@fuzzed(120)
@given(st.data())
def test_coco(damage, data):
    name = data.draw(st.sampled_from(["instances", "captions"]))
    root = damage(data, f"coco/annotations/{name}_val2017.json", damaged_json)
    survey(Coco2017(str(root / "coco"), **READ), root, "COCO-2017")


DEVKIT = io.BytesIO()
_table = np.zeros(1000, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", object)])
_table["ILSVRC2012_ID"], _table["WNID"] = range(1, 1001), wnids()
savemat(DEVKIT, {"synsets": _table}, do_compression=True)
LISTS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n" + "".join(f"{name},{wnids()[5]} 1 2 3 4\n" for name in VAL),
    "val.txt": "".join(f"{name}.JPEG {i}\n" for i, name in enumerate(VAL)),
    "ILSVRC2012_validation_ground_truth.txt": "490\n361\n171\n",
}


@fuzzed(80)
@given(st.data(), st.sampled_from(list(LISTS)))
def test_imagenet_lists(roots, tmp_path_factory, data, name):
    root = tmp_path_factory.mktemp("imagenet") / "data"
    shutil.copytree(roots / "imagenet", root)
    put(root / name, data.draw(damaged(LISTS[name].encode()) | forms))
    put(root / "meta.mat", DEVKIT.getvalue())
    survey(ImageNet1K(str(root), **READ), root)


@fuzzed(60)
@given(damaged(DEVKIT.getvalue()) | forms)
def test_the_devkits_table(roots, tmp_path_factory, content):
    root = tmp_path_factory.mktemp("imagenet") / "data"
    shutil.copytree(roots / "imagenet", root)
    put(root / "ILSVRC2012_validation_ground_truth.txt", LISTS["ILSVRC2012_validation_ground_truth.txt"].encode())
    put(root / "meta.mat", content)
    survey(ImageNet1K(str(root), **READ), root)


REFERENCE = io.BytesIO()
np.savez(REFERENCE, mu=np.zeros(3), sigma=np.eye(3), protocol="p", n=5, features=np.zeros((5, 3), np.float32))


@fuzzed(200)
@given(st.data())
def test_reference_statistics(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    put(path, data.draw(damaged(REFERENCE.getvalue()) | forms))
    with naming(path):
        assert np.isfinite(ReferenceStatistics.load(path, "p").moments.mean).all()


ARRAYS = [np.array(0), np.zeros(0), np.zeros(3, complex), np.full(3, np.nan), np.array(["p"]), np.zeros((5, 3, 1))]
ARRAYS += [np.array([10**18] * 3), np.array([["x"] * 3] * 3), np.array(-1), np.array(b"\xff"), np.zeros((5, 3), bool)]
ARRAYS += [np.full((5, 3), np.nan, np.float32), np.zeros(3, "datetime64[s]")]


@fuzzed(80)
@given(st.sampled_from(["mu", "sigma", "protocol", "n", "features", "sha256", "source"]), st.sampled_from(ARRAYS))
def test_reference_statistics_of_other_arrays(tmp_path_factory, name, array):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    with np.load(io.BytesIO(REFERENCE.getvalue())) as file:
        np.savez(path, **{**file, name: array})
    with naming(path):
        found = ReferenceStatistics.load(path, "p", 3, "abc")
        assert found.features is None or np.isfinite(found.features).all()


@fuzzed(80)
@given(st.data())
def test_a_damaged_latent_is_made_again(tmp_path_factory, data):
    cache = LatentCache(tmp_path_factory.mktemp("cache"), 8, "encoder")
    latent = torch.arange(16.0).reshape(4, 2, 2)
    key = cache.key(b"content")
    cache.write(key, latent)
    (file,) = cache.folder.rglob("*.safetensors")
    content = data.draw(damaged(save({"latent": latent})) | damaged(save({"latent": latent[0].half()})) | forms)
    put(file, content)
    with in_time():
        found = cache.read(key)
    assert found is None or (found.ndim == 3 and found.dtype == torch.float32 and found.isfinite().all())


PARTS = st.sampled_from(["..", ".", "", "a", "nul\0", "/", "~", "\ud800", "ü", "x" * 300, "a.png", "%", "\n", "CON"])


@fuzzed(150)
@given(
    st.lists(st.one_of(PARTS, st.text(max_size=8)), min_size=1, max_size=5),
    st.sampled_from(["png", "jpeg100_truncate"]),
)
def test_no_id_leads_out_of_the_folder(tmp_path_factory, parts, kind):
    image_id = "/".join(parts)
    folder = tmp_path_factory.getbasetemp() / "ids"
    try:
        image_id.encode()
    except UnicodeEncodeError:
        # Refused when the dataset is set up.
        return
    path = sample_path(folder, image_id, kind)
    assert folder in path.parents
    assert ".." not in path.parts
    assert "\0" not in str(path)
    assert all(len(part.encode()) <= 255 for part in path.parts)
