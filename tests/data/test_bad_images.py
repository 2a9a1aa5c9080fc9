"""Unreadable images: `stop` names the file, `skip` continues and reports the reason."""

import random
import re

import pytest
import torch
from PIL import Image

from bigain.data import ImageFolder
from bigain.errors import InputError

# Two processes on one core, and processes that fork with threads around, are fine here.
quiet_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")


def image(seed):
    return Image.frombytes("RGB", (6, 6), random.Random(seed).randbytes(108))


@pytest.fixture
def tree(tmp_path):
    """Ten images of two classes."""
    for i in range(10):
        folder = tmp_path / ("ant", "bee")[i // 5]
        folder.mkdir(exist_ok=True)
        image(i).save(folder / f"{i}.png")
    return tmp_path


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage(root, *numbers):
    """Break some of the images, in turn each in its own way; returns their ids."""
    ways = [
        truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>"),
        lambda path: path.unlink(),
    ]
    ids = []
    for i, number in enumerate(numbers):
        (path,) = root.glob(f"*/{number}.png")
        ways[i % 4](path)
        ids.append(f"{path.parent.name}/{path.name}")
    return ids


def prepared(root, on_bad_image="skip", num_workers=0, batch_size=4):
    data = ImageFolder(
        str(root), image_size=6, batch_size=batch_size, num_workers=num_workers, on_bad_image=on_bad_image
    )
    data.setup("predict")
    return data


def opened(root, *numbers, **settings):
    """A prepared module some of whose images went bad afterwards."""
    return prepared(root, **settings), damage(root, *numbers)


@quiet_workers
def test_stop_names_the_file_from_a_worker_process(tree):
    data, (image_id,) = opened(tree, 6, on_bad_image="stop", num_workers=2)
    iterator = iter(data.predict_dataloader())
    with pytest.raises(InputError, match=f"{re.escape(str(tree / image_id))} cannot be decoded.*on_bad_image: skip"):
        list(iterator)
    # The error keeps the iterator until it is collected, and then torch waits five seconds for each process.
    iterator._shutdown_workers()


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 10), pytest.param(2, 4, marks=quiet_workers)])
def test_skip_changes_nothing_else(tree, workers, batch_size):
    whole = {}
    for batch in prepared(tree).predict_dataloader():
        whole.update(zip(batch["image_id"], zip(batch["image"], batch["labels"], strict=True), strict=True))
    data, bad = opened(tree, 1, 4, 5, 9, num_workers=workers, batch_size=batch_size)
    seen, failed = {}, {}
    for batch in list(data.predict_dataloader()):
        assert len(batch["image"]) == len(batch["image_id"]) == len(batch["labels"]) == len(batch["digests"])
        assert not set(batch["image_id"]) & set(batch["failed"])
        seen.update(zip(batch["image_id"], zip(batch["image"], batch["labels"], strict=True), strict=True))
        failed.update(batch["failed"])
    assert list(seen) == [item.image_id for item in data.items if item.image_id not in bad]
    assert set(failed) == set(bad)
    for image_id, (pixels, labels) in seen.items():
        assert torch.equal(pixels, whole[image_id][0])
        assert labels == whole[image_id][1]


def test_skip_reports_the_reason(tree):
    data, bad = opened(tree, 0, 1, 2, 3)
    batch, second, _ = list(data.predict_dataloader())
    assert list(batch["failed"]) == bad
    assert batch["image_id"] == batch["labels"] == batch["digests"] == []
    assert (len(batch["image"]), batch["image"].dtype) == (0, torch.uint8)
    assert len(second["image"]) == 4
    reasons = ["truncated", "not an image in a known format", "not an image in a known format", "No such file"]
    for image_id, reason in zip(bad, reasons, strict=True):
        assert reason in batch["failed"][image_id]
        assert str(tree / image_id) in batch["failed"][image_id]


def test_finished_images_are_not_opened_but_failed_ones_are(tree):
    data, bad = opened(tree, 0, 1, batch_size=10)
    data.finished = frozenset({bad[0], "bee/7.png"})
    (batch,) = list(data.predict_dataloader())
    assert list(batch["failed"]) == [bad[1]]
    assert len(batch["image_id"]) == 7
