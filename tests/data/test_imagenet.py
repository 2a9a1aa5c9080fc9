"""ImageNet in every layout: the same ids, labels and pixels; class order; missing and invalid files."""

import csv
import functools
import hashlib
import io
import random

import datasets_setup
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.models import ResNet50_Weights

from bigain.data import ImageNet1K, ImageNet100
from bigain.data.class_names.imagenet import names, wnids
from bigain.errors import InputError

# Classes of the images 1, 2, ...; images of a class are neither neighbours nor in class order.
LABELS = [657, 0, 999, 281, 0, 281, 657, 999, 0, 744, 281, 0]
STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(LABELS) + 1)]
TRUTH = dict(zip(STEMS, LABELS, strict=True))


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """An encoded image for every stem."""
    path = tmp_path_factory.mktemp("image") / "image.jpg"
    files = {}
    for i, stem in enumerate(STEMS):
        image = Image.frombytes("RGB", (5, 4), random.Random(i).randbytes(60)).resize((30 + i, 24))
        image.save(path, "JPEG")
        files[stem] = path.read_bytes()
    return files


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def flat(folder, contents):
    for stem, content in contents.items():
        put(folder / f"{stem}.JPEG", content)


def class_folders(root, contents, folder="val", name="{stem}.JPEG"):
    for stem, content in contents.items():
        wnid = wnids()[TRUTH[stem]]
        put(root / folder / wnid / name.format(stem=stem, wnid=wnid), content)


def kaggle(root, contents, folder="ILSVRC/Data/CLS-LOC/val"):
    """Rows are unordered."""
    flat(root / folder, contents)
    solution(root, {stem: wnids()[TRUTH[stem]] for stem in sorted(STEMS, key=lambda stem: stem[::-1])})


def solution(root, wnid_of):
    """Kaggle's list, with one or two boxes of each image."""
    rows = [("ImageId", "PredictionString")]
    for number, (stem, wnid) in enumerate(wnid_of.items()):
        rows.append((stem, " ".join([f"{wnid} 85 1 499 272", f"{wnid} 0 7 25 4 "][: 1 + number % 2])))
    with (root / "LOC_val_solution.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def devkit_ids():
    """Devkit id of every class index, in a different order than the wnids."""
    shuffled = random.Random(7).sample(range(1000), 1000)
    return {index: number for number, index in enumerate(shuffled, 1)}


@functools.cache
def meta():
    """The devkit's `meta.mat`: a struct array of 1,000 leaves and then inner nodes of the hierarchy."""
    leaves = [(number, wnids()[index]) for index, number in sorted(devkit_ids().items(), key=lambda pair: pair[1])]
    inner = [(number, f"n{number:08d}") for number in range(1001, 1011)]
    synsets = np.zeros((1010, 1), dtype=[(field, object) for field in ("ILSVRC2012_ID", "WNID", "children")])
    for i, (number, wnid) in enumerate(leaves + inner):
        synsets[i, 0] = (np.array([[number]], np.uint16), wnid, np.arange(number % 4, dtype=np.uint16)[None])
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def devkit(root, contents, folder="ILSVRC2012_devkit_t12/data"):
    flat(root / "val", contents)
    ids = devkit_ids()
    put(root / folder / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{ids[label]}\n" for label in LABELS))
    put(root / folder / "meta.mat", meta())


def parquet(root, contents, folder="data"):
    """As Hugging Face's `datasets` writes it: two shards, several row groups, unordered images."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    order = sorted(STEMS, key=lambda stem: stem[::-1])
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i, stems in enumerate((order[:5], order[5:])):
        images = [{"bytes": contents[stem], "path": f"{stem}_{wnids()[TRUTH[stem]]}.JPEG"} for stem in stems]
        table = pa.table({"image": pa.array(images, kind), "label": [TRUTH[stem] for stem in stems]})
        pq.write_table(table, root / folder / f"validation-{i:05d}-of-00002.parquet", row_group_size=2)


LAYOUTS = {
    "class folders": class_folders,
    "class folders at the root": functools.partial(class_folders, folder="."),
    # As in Hugging Face's archive of the validation images.
    "file names with their class": functools.partial(class_folders, name="{stem}_{wnid}.JPEG"),
    "Kaggle": kaggle,
    "Kaggle's list beside val": functools.partial(kaggle, folder="val"),
    "devkit": devkit,
    "devkit's list beside val": functools.partial(devkit, folder="."),
    "parquet": parquet,
    "parquet at the root": functools.partial(parquet, folder="."),
}


prepared = functools.partial(datasets_setup.prepared, ImageNet1K)
refusal = functools.partial(datasets_setup.refusal, ImageNet1K)


def ids(data):
    return {item.image_id for item in data.items}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("imagenet")
    class_folders(root, contents)
    return root


@pytest.fixture(scope="module")
def pixels(tree):
    data = prepared(tree)
    pixels = {item.image_id: data.read_image(item) for item in data.items}
    assert len({image.numpy().tobytes() for image in pixels.values()}) == len(STEMS)
    return pixels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_ids_labels_pixels_and_selections(layout, tmp_path, contents, tree, pixels):
    LAYOUTS[layout](tmp_path, contents)
    data = prepared(tmp_path, batch_size=5)
    assert {item.image_id: item.labels for item in data.items} == {stem: (label,) for stem, label in TRUTH.items()}
    seen = {}
    for batch in data.predict_dataloader():
        seen.update(zip(batch["image_id"], zip(batch["image"], batch["labels"], strict=True), strict=True))
    assert set(seen) == set(STEMS)
    for stem, (image, labels) in seen.items():
        assert torch.equal(image, pixels[stem])
        assert labels == (TRUTH[stem],)
    for part in ({"per_class": 2}, {"limit": 7, "seed": 3}):
        assert ids(prepared(tmp_path, **part)) == ids(prepared(tree, **part))


# Classes


def test_wnids_ascend_and_are_the_official_ones():
    assert len(set(wnids())) == 1000
    assert list(wnids()) == sorted(wnids())
    digest = hashlib.sha256("".join(f"{wnid}\n" for wnid in wnids()).encode()).hexdigest()
    assert digest == "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"


def test_names_are_in_torchvisions_order():
    """Other names, the same classes: where both lists have a name once, it has the same index in both."""
    assert [name for name in names() if names().count(name) > 1] == ["missile"] * 2 + ["sunglasses"] * 2
    theirs = [name.lower() for name in ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
    ours = [name.lower() for name in names()]
    shared = [name for name in ours if ours.count(name) == theirs.count(name) == 1]
    assert len(shared) > 650
    assert [ours.index(name) for name in shared] == [theirs.index(name) for name in shared]


def test_imagenet100_is_the_published_list_ascending_by_imagenet_index():
    """The position in the folder order is the label; the ImageNet index is what a DiT is conditioned on."""
    space = ImageNet100().class_space
    assert list(space.indices) == sorted(set(space.indices)) != list(range(100))
    assert list(space.names) == [names()[index] for index in space.indices]
    digest = hashlib.sha256("".join(f"{wnids()[index]}\n" for index in space.indices).encode()).hexdigest()
    assert digest == "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"


def test_imagenet100_takes_its_classes_out_of_the_same_files(tmp_path, contents):
    indices = list(ImageNet100().class_space.indices)
    inside, outside = indices[40], next(index for index in range(1000) if index not in indices)
    content = contents[STEMS[0]]
    for index, stem in ((inside, STEMS[5]), (outside, STEMS[1]), (indices[99], STEMS[0]), (indices[0], STEMS[9])):
        put(tmp_path / "val" / wnids()[index] / f"{stem}.JPEG", content)
    data = datasets_setup.prepared(ImageNet100, tmp_path)
    assert {item.image_id: item.labels for item in data.items} == {STEMS[5]: (40,), STEMS[0]: (99,), STEMS[9]: (0,)}
    prompts = dict(zip((item.image_id for item in data.items), data.generation_prompts(), strict=True))
    assert prompts[STEMS[5]] == f"a photo of a {names()[inside]}."


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (ImageNet1K, {}, 50_000),
        (ImageNet1K, {"per_class": 2}, 2000),
        (ImageNet1K, {"limit": 3}, None),
        (ImageNet1K, {"subset": "ids.txt"}, None),
        (ImageNet100, {}, 5000),
        (ImageNet100, {"per_class": 2}, 200),
    ],
    ids=str,
)
def test_expected_images(kind, settings, expected):
    assert kind(**settings).expected_images == expected
    assert kind(**settings).official_images == (50_000 if kind is ImageNet1K else 5000)


def test_ten_classes_by_name_or_wnid_keep_their_indices(tree, tmp_path):
    path = tmp_path / "classes.txt"
    put(path, f"tabby cat\n{wnids()[0]}\n{wnids()[744]}\n" + "".join(f"{wnid}\n" for wnid in wnids()[100:107]))
    data = prepared(tree, classes=str(path))
    indices = [0, *range(100, 107), 281, 744]
    assert list(data.class_space.indices) == indices
    assert {item.image_id: item.labels[0] for item in data.items} == {
        stem: indices.index(label) for stem, label in TRUTH.items() if label in indices
    }
    assert data.expected_images == 500


# Missing and invalid files


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "ImageNet-1K: no images found, {root} is empty; expected val/<wnid>/*.JPEG"),
        (["val/tench/1.JPEG", "val/n0144/1.JPEG"], "{root}/val holds n0144, tench; expected"),
        ([f"val/{wnids()[0]}/readme"], "{root} has 0 images, none of the 1000 classes; expected"),
        ([f"val/{wnids()[0]}/1.JPEG", "val/n00001740/1.JPEG"], "have the same image id '1'; rename or remove one"),
        ([f"val/{wnids()[0]}/1.JPEG", "val/other/2.JPEG"], "{root}/val/other is not a class of ImageNet-1K (1 such"),
        (["val/1.JPEG"], "{root} has images but no list of their classes: LOC_val_solution.csv, ILSVRC2012_validation"),
    ],
)
def test_folders_that_are_not_the_validation_set(tmp_path, files, words):
    for name in files:
        put(tmp_path / name, b"")
    assert words.format(root=tmp_path) in refusal(tmp_path)


def test_hidden_and_other_files_are_ignored(tmp_path, contents):
    class_folders(tmp_path, contents)
    for name in (f"{wnids()[0]}/._{STEMS[1]}.JPEG", ".DS_Store", "__MACOSX/index.html", f"{wnids()[0]}/more/1.JPEG"):
        put(tmp_path / "val" / name, b"")
    data = prepared(tmp_path)
    assert ids(data) == set(STEMS)
    (note,) = data.notes
    assert note.startswith(f"{tmp_path / 'val'}: ignored __MACOSX, {wnids()[0]}/more/; expected")


def test_an_image_beside_parquet_files_is_ignored(tmp_path, contents):
    parquet(tmp_path, contents)
    put(tmp_path / "logo.png", b"")
    assert ids(prepared(tmp_path)) == set(STEMS)


def test_a_subset_of_the_images_runs_with_the_whole_list(tmp_path, contents, caplog):
    kaggle(tmp_path, contents, "val")
    for stem in STEMS[3:]:
        (tmp_path / "val" / f"{stem}.JPEG").unlink()
    assert {item.image_id: item.labels[0] for item in prepared(tmp_path).items} == {
        stem: TRUTH[stem] for stem in STEMS[:3]
    }
    assert "only 3 of 50,000 images; a partial run" in caplog.text
    solution(tmp_path, {STEMS[7]: wnids()[1]})
    message = refusal(tmp_path)
    assert f"solution.csv has no class for 3 of the 3 images of {tmp_path / 'val'}, such as {STEMS[0]}" in message
    assert f"the list has images such as {STEMS[7]}" in message


def test_a_shorter_list_runs_with_both_counts(tmp_path, contents, caplog):
    flat(tmp_path / "val", contents)
    solution(tmp_path, {STEMS[4]: wnids()[3], STEMS[2]: wnids()[7]})
    assert {item.image_id: item.labels[0] for item in prepared(tmp_path).items} == {STEMS[4]: 3, STEMS[2]: 7}
    assert "only 2 of 50,000 images" in caplog.text
    assert f"has no class for 10 of the 12 images of {tmp_path / 'val'}, which are not read: {STEMS[0]}" in caplog.text


def test_a_list_with_an_unknown_class(tmp_path, contents):
    flat(tmp_path / "val", contents)
    solution(tmp_path, {STEMS[0]: "n00000001"})
    list_file = tmp_path / "LOC_val_solution.csv"
    assert f"{list_file} gives {STEMS[0]} the class 'n00000001', which ImageNet-1K does not" in refusal(tmp_path)
    solution(tmp_path, {})
    assert f"{list_file} is empty; expected LOC_val_solution.csv" in refusal(tmp_path)


def test_a_devkit_list_without_its_table(tmp_path, contents):
    devkit(tmp_path, contents, ".")
    (tmp_path / "meta.mat").unlink()
    message = refusal(tmp_path)
    assert "numbers classes in the order of the devkit's data/meta.mat" in message
    assert f"copy that file to {tmp_path / 'meta.mat'}" in message


def test_a_devkit_number_without_a_class(tmp_path, contents):
    """Not even if it is an index: 0 is not tench."""
    devkit(tmp_path, contents, ".")
    put(tmp_path / "ILSVRC2012_validation_ground_truth.txt", "1\n0\n")
    assert "the class 'number 0', which ImageNet-1K does not have" in refusal(tmp_path)


def test_training_images_are_those_of_the_other_folder(tmp_path, contents):
    class_folders(tmp_path, contents)
    with pytest.raises(InputError, match=r"no class folder.*expected train/<wnid>"):
        ImageNet1K(root=tmp_path, train=True).setup("predict")
    for number in range(3):
        put(tmp_path / f"train/{wnids()[7]}/{wnids()[7]}_{number}.JPEG", contents[STEMS[0]])
    put(tmp_path / f"train/{wnids()[3]}/{wnids()[3]}_8.JPEG", contents[STEMS[1]])
    data = ImageNet1K(root=tmp_path, train=True, per_class=2)
    data.setup("predict")
    assert [item.labels for item in data.items] == [(3,), (7,), (7,)]
    assert data.official_images is None
    assert len(ImageNet1K(root=tmp_path).find_items()) == len(STEMS)
