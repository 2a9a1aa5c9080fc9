"""COCO-2017 in a small tree of the official layout: categories, several labels, captions, invalid files."""

import json
from functools import partial

import datasets_setup
import pytest
from PIL import Image

from bigain.data import Coco2017
from bigain.data.class_names.coco import CATEGORIES
from bigain.errors import InputError

PERSON, CAT, DOG, STOP_SIGN, TOOTHBRUSH = 1, 17, 18, 13, 90
# Category ids of every image id, unordered.
IMAGES = {397133: [STOP_SIGN, PERSON], 139: [CAT, CAT, CAT], 581781: [], 785: [TOOTHBRUSH, DOG, PERSON, DOG], 25: []}
# In file order; some images have several.
CAPTIONS = [(785, "first of 785"), (139, " a cat \n"), (785, "second of 785"), (25, "none"), (397133, "a sign")]
CAPTIONS += [(139, "an animal"), (581781, "empty street")]


def instances(images=IMAGES):
    """The content of the instances file."""
    return {
        "info": {"year": 2017},
        "images": [{"id": image, "file_name": f"{image:012d}.jpg", "height": 12, "width": 16} for image in images],
        "annotations": [
            {"id": image * 10 + i, "image_id": image, "category_id": category, "iscrowd": i % 2, "bbox": [0, 0, 1, 1]}
            for image, categories in images.items()
            for i, category in enumerate(categories)
        ],
        "categories": [{"supercategory": "thing", "id": i, "name": name} for i, name in CATEGORIES.items()],
    }


def captions(pairs=CAPTIONS):
    return {"annotations": [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(pairs)]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def instances_file(root):
    return root / "annotations" / "instances_val2017.json"


def captions_file(root):
    return root / "annotations" / "captions_val2017.json"


def plant(root, there=instances(), texts=captions()):  # noqa: B008 -- read only
    write(instances_file(root), there)
    write(captions_file(root), texts)
    (root / "val2017").mkdir()
    for i, image in enumerate(there["images"]):
        Image.new("RGB", (16, 12), (40 * i, 10, 200)).save(root / "val2017" / image["file_name"])
    return root


@pytest.fixture
def tree(tmp_path):
    return plant(tmp_path / "coco")


prepared = partial(datasets_setup.prepared, Coco2017)
refusal = partial(datasets_setup.refusal, Coco2017)


def test_categories_ascend_with_the_official_gaps():
    assert list(CATEGORIES) == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert len(set(CATEGORIES.values())) == 80


def test_labels_are_the_distinct_categories_of_an_image_with_those_of_crowds(tree):
    """Label is the category's position, not its id; crowd annotations (`iscrowd`: 1) count."""
    assert any(entry["iscrowd"] for entry in instances()["annotations"])
    labels = {"25": (), "139": (15,), "785": (0, 16, 79), "397133": (0, 11), "581781": ()}
    assert [(item.image_id, item.labels) for item in prepared(tree).items] == list(labels.items())


def test_prompts_are_the_first_captions_in_file_order(tree, tmp_path):
    assert prepared(tree).generation_prompts() == ["none", "a cat", "first of 785", "a sign", "empty street"]
    path = tmp_path / "ids.txt"
    path.write_text("397133\n139\n", encoding="utf-8")
    assert prepared(tree, subset=str(path)).generation_prompts() == ["a cat", "a sign"]


def test_opening_decodes_nothing_and_needs_no_captions(tree):
    captions_file(tree).unlink()
    for file in (tree / "val2017").iterdir():
        file.write_bytes(b"garbage")
    (tree / "val2017" / "000000000001.jpg").write_bytes(b"unlisted")
    data = prepared(tree)
    assert len(data.items) == 5
    with pytest.raises(InputError, match="cannot be decoded") as caught:
        data.read_image(data.items[1])
    assert str(tree / "val2017" / "000000000139.jpg") in str(caught.value)


def test_missing_annotations(tree, tmp_path):
    message = refusal(tmp_path / "none")
    assert f"{instances_file(tmp_path / 'none')} is missing, {tmp_path / 'none/annotations'} does not exist" in message
    assert "expected <root>/val2017/*.jpg and <root>/annotations/{instances,captions}_val2017.json" in message
    assert "https://cocodataset.org/#download" in message
    data = prepared(tree)
    captions_file(tree).unlink()
    with pytest.raises(InputError, match=r"captions_val2017.json is missing, .* holds instances_val2017.json"):
        data.generation_prompts()


def test_missing_images(tree):
    for image in (139, 785):
        (tree / "val2017" / f"{image:012d}.jpg").unlink()
    message = refusal(tree)
    assert f"{tree / 'val2017'} lacks 2 of 5 images that {instances_file(tree)} lists, the first 0000" in message
    (tree / "val2017").rename(tree / "val")
    assert "lacks 5 of 5 images" in refusal(tree)


def test_an_unknown_category(tree):
    content = instances()
    content["categories"][15].update(name="kitten")
    write(instances_file(tree), content)
    assert f"{instances_file(tree)} has the category 17, 'kitten', unknown to COCO-2017" in refusal(tree)


def test_an_empty_caption(tree):
    """The image would be generated from an empty prompt."""
    write(captions_file(tree), captions([(139, "  "), *CAPTIONS]))
    data = prepared(tree)
    with pytest.raises(InputError, match="has no caption for 1 of 5 images, the first 139") as caught:
        data.generation_prompts()
    assert str(captions_file(tree)) in str(caught.value)
