"""Oxford-IIIT Pets in a small tree of torchvision's layout: order of classes, prompts, invalid lists."""

import shutil
from functools import partial

import datasets_setup
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from bigain.data import OxfordPets
from bigain.data.class_names.pets import BREEDS
from bigain.errors import InputError

# File name stems in the order of the official class ids; cats are capitalised there, dogs are not.
OFFICIAL = """
    Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay boxer
    British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter german_shorthaired great_pyrenees
    havanese japanese_chin keeshond leonberger Maine_Coon miniature_pinscher newfoundland Persian pomeranian pug Ragdoll
    Russian_Blue saint_bernard samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier
    wheaten_terrier yorkshire_terrier
"""
STEMS = OFFICIAL.split()


def entry(label, number=1):
    """One line of an official list: name, class id from 1, species (1 cat, 2 dog), breed id."""
    return f"{STEMS[label]}_{number} {label + 1} {1 if STEMS[label][0].isupper() else 2} 1"


def plant(root, lines, split="test", absent=()):
    """Create a tree whose list has these lines."""
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"{split}.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    for name in (line.split()[0] for line in lines if line.strip() and not line.startswith("#")):
        if name not in absent:
            Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(folder / "images" / f"{name}.jpg")
    return folder


prepared = partial(datasets_setup.prepared, OxfordPets)
refusal = partial(datasets_setup.refusal, OxfordPets)


@pytest.fixture(scope="module")
def all_breeds(tmp_path_factory):
    """Two images of every breed, listed unordered."""
    root = tmp_path_factory.mktemp("pets")
    labels = sorted(range(37), key=lambda label: label * 17 % 37)
    for split, numbers in (("test", (7, 3)), ("trainval", (20, 100))):
        plant(root, [entry(label, number) for number in numbers for label in labels], split)
    return root


@pytest.mark.parametrize("split", ["test", "trainval"])
def test_classes_and_labels_are_those_of_torchvision(all_breeds, split, monkeypatch):
    reference = OxfordIIITPet(all_breeds, split=split, target_types=["category", "binary-category"])
    monkeypatch.setenv("HOME", str(all_breeds))
    data = prepared("~", split=split)
    assert list(data.class_space.names) == reference.classes
    species = data.class_space.factors["species"]
    assert len(data.items) == len(reference) == 74
    assert data.official_images == {"test": 3669, "trainval": 3680}[split]
    for i, item in enumerate(data.items):
        assert (item.labels[0], species[item.labels[0]]) == reference[i][1]
        assert data.files[item.image_id] == reference._images[i]


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_prompts(preset):
    space = OxfordPets(prompts=preset).class_space
    for name, prompt, dog in zip(space.names, space.prompts, space.factors["species"], strict=True):
        species = {"paper": "", "released": " dog" if dog else " cat"}[preset]
        assert prompt == f"a photo of a {name}{species}, a type of pet."
    with pytest.raises(InputError, match="split must be one of test, trainval, not 'train'"):
        OxfordPets(split="train")


def test_comments_blank_lines_and_unlisted_images_are_ignored(tmp_path):
    folder = plant(tmp_path, ["# Image CLASS-ID SPECIES BREED ID", "", entry(4), "  ", "#", entry(0)])
    for name in ("beagle_9.jpg", "notes.mat"):
        (folder / "images" / name).write_bytes(b"")
    assert [item.labels[0] for item in prepared(tmp_path).items] == [4, 0]


def test_a_missing_tree_reports_the_expected_files_and_their_source(tmp_path):
    message = refusal(tmp_path, split="trainval")
    assert f"cannot read {tmp_path / 'oxford-iiit-pet' / 'annotations' / 'trainval.txt'}: No such file" in message
    assert "torchvision.datasets.OxfordIIITPet(root, download=True)" in message
    assert "<root>/oxford-iiit-pet/images" in message
    assert "https://" in message


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    folder = plant(tmp_path, [entry(i) for i in range(5)], absent=(f"{STEMS[2]}_1", f"{STEMS[4]}_1"))
    message = refusal(tmp_path)
    assert f"{folder / 'images'} lacks 2 of 5 images that {folder}" in message
    assert f"test.txt lists, the first {STEMS[2]}_1.jpg; expected" in message
    shutil.rmtree(folder / "images")
    assert "lacks 5 of 5 images" in refusal(tmp_path)


def test_a_name_that_contradicts_the_class(tmp_path):
    """Class ids from 0, or a different order of names, would silently make all results wrong."""
    plant(tmp_path, [entry(0), "boxer_1 8 2 5"])
    assert f"line 2: boxer_1 is listed as class 8, {BREEDS[7]}" in refusal(tmp_path)
