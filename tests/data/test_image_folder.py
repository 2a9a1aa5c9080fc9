"""Your own images: labels in the order of the folders or of the names file, and invalid folders."""

import random
from functools import partial

import datasets_setup
import pytest
from PIL import Image

from bigain.data import ImageFolder


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


prepared = partial(datasets_setup.prepared, ImageFolder, image_size=4)
refusal = partial(datasets_setup.refusal, ImageFolder)


def labels(data):
    return {item.image_id: item.labels for item in data.items}


def test_classes_are_the_folders_in_order(tree):
    data = prepared(tree)
    assert list(data.class_space.names) == ["Bald Eagle", "ant", "zebra"]
    assert data.class_space.prompts[0] == "a photo of a Bald Eagle."
    assert data.class_space.indices is None
    folders = ["Bald_Eagle", "ant", "zebra"]
    assert labels(data) == {f"{folders[i // 2]}/{('1.png', '2.JPG')[i % 2]}": (i // 2,) for i in range(6)}


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


def test_what_is_not_read_is_named(tree, caplog):
    for name in (".thumbnails/1.png", "__MACOSX/ant/1.png", "ant/@eaDir/1.png", "ant/more/1.png", "1.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"")
    for name in ("ant/notes.txt", "ant/._1.png", ".DS_Store"):
        (tree / name).write_bytes(b"")
    (tree / "loop").symlink_to(tree / "loop")
    (tree / "zebra" / "3.jfif").write_bytes(b"")
    data = prepared(tree)
    assert len(data.items) == 7
    assert list(data.class_space.names) == ["Bald Eagle", "ant", "zebra"]
    named = "1.png, .thumbnails, __MACOSX, loop, ant/more/, ant/@eaDir and 1 more"
    assert [record.message for record in caplog.records] == [f"warning: {note}" for note in data.notes]
    (note,) = data.notes
    assert note.startswith(f"{tree}: ignored {named}; expected <root>/<class>/<image>")


def test_a_class_folder_without_images(tree, names, caplog):
    (tree / "bee" / "more").mkdir(parents=True)
    (tree / "again").symlink_to(tree)
    message = refusal(tree)
    assert f"{tree} has 2 class folders without an image: again, bee; each is a possible answer" in message
    assert "ignored again/" in message
    text = "".join(f"{folder}\t{folder}\n" for folder in ("zebra", "again", "bee", "ant", "Bald_Eagle"))
    data = prepared(tree, class_names=names(text))
    assert len(data.class_space) == 5
    assert "2 class folders without an image: again, bee; possible answers nevertheless" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no class folder, {root} does not exist; expected <root>/<class>/<image>"),
        ([], "no class folder, {root} is empty; expected"),
        (["ant/1.txt", "bee/2.png"], "{root} has 1 class folder without an image: ant; each is"),
        (["n01440764/1.png"], "the folders of {root} are WordNet ids"),
    ],
)
def test_folders_without_classes_or_images(tmp_path, files, words):
    root = tmp_path / "root"
    for name in files or []:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    if files is not None:
        root.mkdir(exist_ok=True)
    assert words.format(root=root) in refusal(root)


def test_a_names_file_without_a_folder(tree, names):
    message = refusal(tree, class_names=names("zebra\tz\nant\ta\n"))
    assert f"names.txt and the folders of {tree} differ in 1 class, such as 'Bald_Eagle'" in message


def test_a_prompt_without_a_place_for_the_name(tree):
    assert "prompt needs a {} where the class name goes" in refusal(tree, prompt="a photo of a {name}")
