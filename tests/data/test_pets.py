"""Oxford-IIIT Pets in a fake tree of torchvision's layout: order of classes, prompts, and what is refused."""

import shutil

import pytest
import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from bigain.data import OxfordPets
from bigain.data.class_names.pets import BREEDS, CATS
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
    """Make a tree whose list has these lines."""
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"{split}.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    seed = root / "seed.jpg"
    Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(seed)
    for line in lines:
        name = line.split()[0] if line.strip() and not line.startswith("#") else None
        if name and name not in absent:
            shutil.copyfile(seed, folder / "images" / f"{name}.jpg")
    return folder


def prepared(root, **settings):
    data = OxfordPets(str(root), **{"num_workers": 0, "image_size": 16, **settings})
    data.setup("predict")
    return data


@pytest.fixture(scope="module")
def all_breeds(tmp_path_factory):
    """Two images of every breed, listed in no order of classes."""
    root = tmp_path_factory.mktemp("pets")
    labels = sorted(range(37), key=lambda label: label * 17 % 37)
    for split, numbers in (("test", (7, 3)), ("trainval", (20, 100))):
        plant(root, [entry(label, number) for number in numbers for label in labels], split)
    return root


@pytest.mark.parametrize("split", ["test", "trainval"])
def test_classes_and_labels_are_those_of_torchvision(all_breeds, split):
    reference = OxfordIIITPet(all_breeds, split=split, target_types=["category", "binary-category"])
    data = prepared(all_breeds, split=split)
    assert list(data.class_space.names) == reference.classes
    species = data.class_space.factors["species"]
    assert len(data.items) == len(reference) == 74
    for i, item in enumerate(data.items):
        assert (item.labels[0], species[item.labels[0]]) == reference[i][1]
        assert data.folder / item.image_id == reference._images[i]


def test_breeds_are_in_the_order_of_annotation_ids():
    assert [breed.lower().replace(" ", "_") for breed in BREEDS] == [stem.lower() for stem in STEMS]
    assert len(set(BREEDS)) == 37


def test_twelve_cats():
    assert {BREEDS[i] for i in range(37) if STEMS[i][0].isupper()} == CATS
    assert len(CATS) == 12


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_prompts(preset):
    space = OxfordPets(prompts=preset).class_space
    for name, prompt, dog in zip(space.names, space.prompts, space.factors["species"], strict=True):
        species = {"paper": "", "released": " dog" if dog else " cat"}[preset]
        assert prompt == f"a photo of a {name}{species}, a type of pet."


@pytest.mark.parametrize(
    ("preset", "label", "prompt"),
    [
        ("paper", 0, "a photo of a Abyssinian, a type of pet."),
        ("released", 0, "a photo of a Abyssinian cat, a type of pet."),
        ("paper", 36, "a photo of a Yorkshire Terrier, a type of pet."),
        ("released", 36, "a photo of a Yorkshire Terrier dog, a type of pet."),
    ],
)
def test_prompts_to_the_letter(preset, label, prompt):
    assert OxfordPets(prompts=preset).class_space.prompts[label] == prompt


def test_the_paper_preset_is_the_default():
    assert OxfordPets().class_space == OxfordPets(prompts="paper").class_space


def test_nothing_is_read_before_setup(tmp_path):
    assert len(OxfordPets(str(tmp_path / "none")).class_space) == 37


def test_the_loader(all_breeds):
    data = prepared(all_breeds, batch_size=30)
    batches = list(data.predict_dataloader())
    assert [tuple(batch["image"].shape) for batch in batches] == [(n, 3, 16, 16) for n in (30, 30, 14)]
    assert [labels[0] for batch in batches for labels in batch["labels"]] == [item.labels[0] for item in data.items]
    assert batches[0]["image_id"][:2] == ["images/Abyssinian_7.jpg", data.items[1].image_id]
    assert batches[0]["image"].dtype == torch.uint8
    assert len(batches[0]["image"].unique()) > 8


def test_limit_takes_one_of_every_breed(all_breeds):
    assert sorted(item.labels[0] for item in prepared(all_breeds, limit=37).items) == list(range(37))


def test_a_subset_by_path(all_breeds, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("images/pug_3.jpg\nimages/Bombay_7.jpg\n", encoding="utf-8")
    items = prepared(all_breeds, subset=str(path)).items
    assert sorted((item.image_id, item.labels[0]) for item in items) == [
        ("images/Bombay_7.jpg", 7),
        ("images/pug_3.jpg", 25),
    ]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    plant(tmp_path / "mine", [entry(0)])
    assert len(prepared("~/mine").items) == 1


def test_comments_and_blank_lines_are_passed_over(tmp_path):
    plant(tmp_path, ["# Image CLASS-ID SPECIES BREED ID", "", entry(4), "  ", "#", entry(0)])
    assert [item.labels[0] for item in prepared(tmp_path).items] == [4, 0]


@pytest.mark.parametrize(("split", "official"), [("test", 3669), ("trainval", 3680)])
def test_a_partial_list_runs_and_the_official_count_is_known(tmp_path, split, official):
    plant(tmp_path, [entry(3), entry(30)], split)
    data = prepared(tmp_path, split=split)
    assert [item.labels[0] for item in data.items] == [3, 30]
    assert data.official_images == official


def test_more_images_than_listed_are_passed_over(tmp_path):
    folder = plant(tmp_path, [entry(0), entry(1)])
    (folder / "annotations" / "test.txt").write_text(entry(1) + "\n", encoding="utf-8")
    (folder / "images" / "notes.mat").write_bytes(b"")
    assert [item.image_id for item in prepared(tmp_path).items] == ["images/american_bulldog_1.jpg"]


def test_an_empty_list(tmp_path):
    plant(tmp_path, [])
    with pytest.raises(InputError, match="no image of Oxford-IIIT Pets"):
        prepared(tmp_path)


@pytest.mark.parametrize("split", ["test", "trainval"])
def test_a_missing_tree_says_what_was_looked_for_and_how_to_get_it(tmp_path, split):
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, split=split)
    message = str(caught.value)
    assert str(tmp_path / "oxford-iiit-pet" / "annotations" / f"{split}.txt") in message
    assert "torchvision.datasets.OxfordIIITPet(root, download=True)" in message
    assert "<root>/oxford-iiit-pet/images" in message
    assert "https://" in message


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    folder = plant(tmp_path, [entry(i) for i in range(5)], absent=(f"{STEMS[2]}_1", f"{STEMS[4]}_1"))
    with pytest.raises(InputError, match="names 2 images that are not in") as caught:
        prepared(tmp_path)
    message = str(caught.value)
    assert f"images/{STEMS[2]}_1.jpg" in message
    assert str(folder / "images") in message
    assert "download=True" in message


def test_a_missing_image_folder(tmp_path):
    shutil.rmtree(plant(tmp_path, [entry(0)]) / "images")
    with pytest.raises(InputError, match="names 1 images"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "Abyssinian_1",
        "Abyssinian_1 1 1",
        "Abyssinian_1 1 1 1 1",
        "Abyssinian_1 0 1 1",
        "yorkshire_terrier_1 38 2 25",
        "Abyssinian_1 -1 1 1",
        "Abyssinian_1 one 1 1",
        "Abyssinian_1 1.0 1 1",
        "Abyssinian_1 \u00b9 1 1",
        "<html> not a list</html>",
    ],
)
def test_malformed_lines_are_named(tmp_path, line):
    folder = plant(tmp_path, ["# header", entry(3)])
    path = folder / "annotations" / "test.txt"
    path.write_text(f"# header\n{entry(3)}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3: expected 'name class species breed'") as caught:
        prepared(tmp_path)
    assert str(path) in str(caught.value)
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("shift", [1, -1, 36], ids=str)
def test_shifted_labels_are_found(tmp_path, shift):
    """Class ids from 0, or another order of names, would be silent and fatal."""
    name, _, species, breed = entry(8).split()
    shifted = (8 + shift) % 37
    plant(tmp_path, [entry(0), f"{name} {shifted + 1} {species} {breed}"])
    with pytest.raises(InputError, match=f"line 2: boxer_1 is listed as class {shifted + 1}, {BREEDS[shifted]}"):
        prepared(tmp_path)


@pytest.mark.parametrize("name", ["boxer", "boxer1", "_1", "box_er_1"])
def test_names_that_are_no_breed(tmp_path, name):
    plant(tmp_path, [f"{name} 9 2 5"])
    with pytest.raises(InputError, match="listed as class 9, Boxer"):
        prepared(tmp_path)


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    folder = plant(tmp_path, [entry(0), entry(1)])
    (folder / "images" / f"{STEMS[1]}_1.jpg").write_bytes(b"\xff\xd8 torn")
    data = prepared(tmp_path)
    assert data.read_image(data.items[0]).shape == (3, 16, 16)
    with pytest.raises(InputError, match=f"{STEMS[1]}_1.jpg cannot be decoded"):
        data.read_image(data.items[1])
