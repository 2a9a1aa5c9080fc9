"""Damaged lists of datasets: image ids, classes, annotations. A loaded dataset or an InputError, nothing else."""

import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, damaged_json, forms, fuzzed, naming, put
from PIL import Image
from scipy.io import savemat

from bigain.data import Coco2017, ImageFolder, ImageNet1K, OxfordPets
from bigain.data.class_names.coco import CATEGORIES
from bigain.data.class_names.imagenet import wnids
from bigain.data.class_names.pets import BREEDS
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
    instances = {"images": images, "annotations": labels, "categories": categories[:3]}
    write(root / "coco/annotations/instances_val2017.json", json.dumps(instances))
    captions = [{"image_id": i, "caption": f"caption {i}"} for i in (1, 2, 3)]
    write(root / "coco/annotations/captions_val2017.json", json.dumps({"annotations": captions}))
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def survey(data, *named):
    """Set up a dataset, load all items and prompts; every item is loaded or skipped with a reason."""
    with naming(*named):
        data.setup("predict")
        assert len(data.generation_prompts()) == len(data.items)
        batches = list(data.predict_dataloader())
        seen = [image_id for batch in batches for image_id in (*batch["image_id"], *batch["failed"])]
        assert sorted(seen) == sorted(item.image_id for item in data.items)


LISTS = {
    "pets": ("pets/oxford-iiit-pet/annotations/test.txt", lambda root: OxfordPets(str(root / "pets"), **READ)),
    "class names": ("names.txt", lambda root: folder(root, class_names=str(root / "names.txt"))),
    "subset": ("subset.txt", lambda root: folder(root, subset=str(root / "subset.txt"))),
    "instances": ("coco/annotations/instances_val2017.json", lambda root: Coco2017(str(root / "coco"), **READ)),
    "captions": ("coco/annotations/captions_val2017.json", lambda root: Coco2017(str(root / "coco"), **READ)),
}


def folder(root, **lists):
    return ImageFolder(str(root / "folder"), **lists, **READ)


@fuzzed(80)
@given(st.data(), st.sampled_from(list(LISTS)))
def test_lists(roots, tmp_path_factory, data, kind):
    root = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(roots, root)
    name, dataset = LISTS[kind]
    strategy = damaged_json if name.endswith("json") else damaged
    put(root / name, data.draw(strategy((roots / name).read_bytes()) | forms))
    survey(dataset(root), root, "Oxford-IIIT Pets", "ImageFolder", "COCO-2017")


DEVKIT = io.BytesIO()
_table = np.zeros(1000, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", object)])
_table["ILSVRC2012_ID"], _table["WNID"] = range(1, 1001), wnids()
savemat(DEVKIT, {"synsets": _table}, do_compression=True)
TRUTHS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n" + "".join(f"{name},{wnids()[5]} 1 2 3 4\n" for name in VAL),
    "ILSVRC2012_validation_ground_truth.txt": "490\n361\n171\n",
}


@fuzzed(50)
@given(st.data(), st.sampled_from([*TRUTHS, "meta.mat"]))
def test_imagenet_lists(roots, tmp_path_factory, data, name):
    root = tmp_path_factory.mktemp("imagenet") / "data"
    shutil.copytree(roots / "imagenet", root)
    table, truth = DEVKIT.getvalue(), "ILSVRC2012_validation_ground_truth.txt" if name == "meta.mat" else name
    content = {"meta.mat": table, truth: TRUTHS[truth].encode()}
    content[name] = data.draw(damaged(content[name]) | forms)
    for path, what in content.items():
        put(root / path, what)
    survey(ImageNet1K(str(root), **READ), root)


REFERENCE = io.BytesIO()
np.savez(REFERENCE, mu=np.zeros(3), sigma=np.eye(3), protocol="p", n=5, features=np.zeros((5, 3), np.float32))


@fuzzed(50)
@given(st.data())
def test_reference_statistics(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    put(path, data.draw(damaged(REFERENCE.getvalue()) | forms))
    with naming(path):
        assert np.isfinite(ReferenceStatistics.load(path, "p").moments.mean).all()
