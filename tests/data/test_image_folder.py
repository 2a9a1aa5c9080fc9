"""Your own images: labels in the order of the folders or of the names file, and what is refused."""

import random

import pytest
from PIL import Image

from bigain.data import ImageFolder
from bigain.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """Two images of each of three classes."""
    root = tmp_path / "photos"
    for i, folder in enumerate(["zebra", "Bald_Eagle", "ant"]):
        (root / folder).mkdir(parents=True)
        for name in ("1.png", "2.JPG"):
            Image.frombytes("RGB", (4, 4), random.Random(f"{i}{name}").randbytes(48)).save(root / folder / name, "PNG")
    return root


@pytest.fixture
def names(tmp_path):
    def write(text):
        path = tmp_path / "names.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def prepared(root, **settings):
    data = ImageFolder(str(root), **{"num_workers": 0, "image_size": 4, **settings})
    data.setup("predict")
    return data


def labels(data):
    return {item.image_id: item.labels for item in data.items}


def refusal(root, **settings):
    with pytest.raises(InputError) as caught:
        prepared(root, **settings)
    return str(caught.value)


def test_classes_are_the_folders_in_order(tree):
    data = prepared(tree)
    assert list(data.class_space.names) == ["Bald Eagle", "ant", "zebra"]
    assert data.class_space.prompts[0] == "a photo of a Bald Eagle."
    assert data.class_space.indices is None
    assert labels(data) == {
        "Bald_Eagle/1.png": (0,),
        "Bald_Eagle/2.JPG": (0,),
        "ant/1.png": (1,),
        "ant/2.JPG": (1,),
        "zebra/1.png": (2,),
        "zebra/2.JPG": (2,),
    }


def test_the_names_file_orders_and_names(tree, names):
    path = names("zebra\tplains zebra\n\nant \t an ant\nBald_Eagle\teagle\tof the sea\n")
    data = prepared(tree, class_names=path, prompt="{}: {}")
    assert list(data.class_space.names) == ["plains zebra", "an ant", "eagle\tof the sea"]
    assert data.class_space.prompts[1] == "an ant: an ant"
    assert {image_id: label for image_id, (label,) in labels(data).items() if image_id.endswith("1.png")} == {
        "zebra/1.png": 0,
        "ant/1.png": 1,
        "Bald_Eagle/1.png": 2,
    }


def test_the_same_name_in_two_folders_is_two_images(tree):
    data = prepared(tree)
    batch = next(iter(data.predict_dataloader()))
    assert batch["image_id"] == [item.image_id for item in data.items]
    assert len({image.numpy().tobytes() for image in batch["image"]}) == 6
    for item, image in zip(data.items, batch["image"], strict=True):
        with Image.open(tree / item.image_id) as stored:
            assert image.permute(1, 2, 0).numpy().tobytes() == stored.tobytes()


def test_hidden_folders_and_other_files_are_passed_over(tree):
    (tree / ".thumbnails").mkdir()
    (tree / ".thumbnails" / "1.png").write_bytes(b"")
    (tree / "ant" / "notes.txt").write_bytes(b"")
    (tree / "ant" / "._1.png").write_bytes(b"")
    (tree / "1.png").write_bytes(b"")
    assert len(prepared(tree).items) == 6


def test_an_empty_class_stays_a_class(tree):
    (tree / "bee").mkdir()
    assert list(prepared(tree).class_space.names) == ["Bald Eagle", "ant", "bee", "zebra"]


def test_no_count_is_expected(tree, caplog):
    assert prepared(tree).expected_images is None
    assert not caplog.records


def test_subset_and_prompts(tree, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("zebra/2.JPG\nant/1.png\n", encoding="utf-8")
    data = prepared(tree, subset=str(path))
    assert data.generation_prompts() == ["a photo of a ant.", "a photo of a zebra."]


def test_a_missing_root(tmp_path):
    assert f"{tmp_path / 'none'} does not exist; expected <root>/<class>/<image>" in refusal(tmp_path / "none")


def test_an_empty_root(tmp_path):
    assert f"no class folder, {tmp_path} is empty; expected <root>/<class>/<image>" in refusal(tmp_path)


def test_images_without_a_class_folder(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    assert f"no class folder, {tmp_path} holds 1.png; expected" in refusal(tmp_path)


def test_folders_without_images(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
    (tmp_path / "ant" / "1.txt").write_bytes(b"")
    assert f"no image in any of the 2 folders of {tmp_path}; expected" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zebra\tz\nant\ta\n", "lacks 'Bald_Eagle' (1 such)"),
        ("zebra\tz\nant\ta\nBald_Eagle\te\nbee\tb\ncow\tc\n", "names 'bee' (2 such)"),
        ("zebra\tz\nant a\n", "line 2: 'ant a' is no new class"),
        ("zebra\tz\nzebra\ty\n", "line 2: 'zebra\\ty' is no new class"),
        ("zebra\t \n", "line 1"),
        ("\tz\n", "line 1"),
        ("\n\n", "names no class"),
    ],
)
def test_names_files_that_are_refused(tree, names, text, words):
    path = names(text)
    message = refusal(tree, class_names=path)
    assert words in message
    assert path in message


def test_a_missing_names_file(tree, tmp_path):
    path = tmp_path / "none.txt"
    assert f"class_names file {path} does not exist" in refusal(tree, class_names=str(path))


def test_a_prompt_without_a_place_for_the_name(tree):
    assert "prompt needs a {} where the class name goes" in refusal(tree, prompt="a photo")
