"""Subsets, limits and the loader of any evaluation DataModule."""

import hashlib
import pickle
from collections import Counter
from itertools import pairwise

import pytest
import torch

from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace
from bigain.data.selection import Item, per_class, stratified
from bigain.errors import InputError


class Numbers(EvalDataModule):
    """Constant images that show their own number."""

    name = "Numbers"

    def __init__(self, labels=(0, 1, 2, 0, 1, 2, 0, 1), batch_size=3, workers=0, image_size=2, **settings):
        super().__init__(image_size, batch_size, workers, **settings)
        self.labels = labels

    @property
    def all_classes(self):
        return ClassSpace(["a", "b", "c"], ["an a", "a b", "a c"], range(3))

    def find_items(self):
        return [Item(f"n/{i}", (label,)) for i, label in enumerate(self.labels)]

    def read_bytes(self, item):
        return b"P6 2 2 255 " + bytes([int(item.image_id[2:])]) * 12


def ids(items):
    return [item.image_id for item in items]


def chosen(**settings):
    data = Numbers(**settings)
    data.setup("predict")
    return ids(data.items)


@pytest.fixture
def id_file(tmp_path):
    def write(text):
        path = tmp_path / "ids.txt"
        path.write_bytes(text.encode())
        return str(path)

    return write


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_the_loader_yields_every_item_in_order(batch_size):
    data = Numbers(batch_size=batch_size)
    data.setup("predict")
    assert ids(data.items) == [f"n/{i}" for i in range(8)]
    batches = list(data.predict_dataloader())
    assert [len(batch["image_id"]) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [name for batch in batches for name in batch["image_id"]] == ids(data.items)
    images = torch.cat([batch["image"] for batch in batches])
    assert [labels for batch in batches for labels in batch["labels"]] == [(label,) for label in data.labels]
    assert images.dtype == torch.uint8
    assert images.shape == (8, 3, 2, 2)
    assert images[:, 0, 0, 0].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"workers": -1}, "num_workers must be at least 0, not -1"),
        ({"per_class": -2}, "per_class must be at least 1, not -2"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of stop, skip, not 'ignore'"),
    ],
    ids=str,
)
def test_invalid_settings_are_errors_at_once(settings, message):
    with pytest.raises(InputError, match=message):
        Numbers(**settings)


@pytest.mark.parametrize("text", ["n/1\nn/5\nn/6", "\n  n/6\r\n\r\nn/5  \r\nn/1\r\n\t\n"], ids=["plain", "messy"])
def test_a_subset_keeps_the_order_of_the_dataset(id_file, text):
    assert chosen(subset=id_file(text)) == ["n/1", "n/5", "n/6"]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (None, {}, "cannot read .*none.txt: No such file or directory; expected one image id per line"),
        ("n/1\nn/80\n5\n", {}, r"'n/80', which is not in Numbers \(2 of 3 ids missing\); its ids look like 'n/0'"),
        ("n/1\n", {"labels": ()}, "the dataset has no images"),
        ("n/1\nn/2\nn/1\nn/2\n", {}, "lists 2 ids twice"),
        ("\n\n", {}, "lists no image; expected one image id per line"),
        ("n/0\nn/2\nn/3\n", {"limit": 4}, "limit asks for 4 images, but there are 3"),
    ],
)
def test_invalid_subsets(id_file, text, settings, message):
    path = "none.txt" if text is None else id_file(text)
    with pytest.raises(InputError, match=message):
        chosen(subset=path, **settings)


ITEMS = [Item(f"x/{i:03d}", (label,)) for i, label in enumerate([0] * 30 + [1] * 5 + [2] * 12 + [3])]


def test_stratified_is_as_even_as_the_classes_allow():
    there = Counter(item.labels[0] for item in ITEMS)
    for limit in range(1, len(ITEMS) + 1):
        items = stratified(ITEMS, limit, 0)
        assert len(items) == len(set(items)) == limit
        assert ids(items) == sorted(ids(items))
        taken = Counter(item.labels[0] for item in items)
        most = max(taken.values())
        assert all(taken[label] >= min(most - 1, there[label]) for label in there)


def test_stratified_is_nested():
    """A larger limit keeps the items of a smaller one, so that runs can be extended."""
    sets = [set(stratified(ITEMS, limit, 1)) for limit in range(1, len(ITEMS) + 1)]
    assert all(a < b for a, b in pairwise(sets))


def test_stratified_depends_on_ids_and_seed_alone():
    state = torch.get_rng_state()
    first = stratified(ITEMS, 11, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert stratified(ITEMS[::-1], 11, 0) == first[::-1]
    assert first != stratified(ITEMS, 11, 1)
    assert ids(stratified(ITEMS, 6, 0)) == ["x/016", "x/017", "x/031", "x/034", "x/042", "x/047"]


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (7, 1), (100, 0)])
def test_per_class_takes_the_smallest_hashes_of_each_class(seed, count):
    kept = set()
    for label in range(4):
        there = [item.image_id for item in ITEMS if item.labels == (label,)]
        there.sort(key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())
        kept.update(there[:count])
    assert ids(per_class(ITEMS, count, seed)) == sorted(kept)


def test_per_class_is_nested_and_depends_on_the_class_and_the_seed_alone():
    sets = [set(per_class(ITEMS, count, 0)) for count in range(1, 31)]
    assert all(a < b for a, b in pairwise(sets))
    assert sets[1] != set(per_class(ITEMS, 2, 1))
    assert set(per_class([item for item in ITEMS[::-1] if item.labels == (2,)], 3, 0)) < sets[2]


def test_an_item_of_several_classes_counts_for_the_first():
    """Items without a class form their own group."""
    items = [Item("a", (0, 1)), Item("b", (1,)), Item("c", (0, 2)), Item("d", (0,)), Item("e", ()), Item("f", ())]
    kept = per_class(items, 1, 0)
    assert Counter(item.labels[:1] for item in kept) == {(0,): 1, (1,): 1, (): 1}


def test_per_class_comes_after_the_subset_and_before_the_limit(id_file):
    path = id_file("\n".join(f"n/{i}" for i in (0, 3, 6, 1, 2)))
    kept = chosen(subset=path, per_class=1)
    assert len(kept) == 3
    assert {"n/1", "n/2"} < set(kept)
    assert set(chosen(subset=path, per_class=1, limit=2)) < set(kept)
    with pytest.raises(InputError, match="limit asks for 4 images, but there are 3"):
        chosen(subset=path, per_class=1, limit=4)


def test_classes_restrict_answers_and_images(tmp_path, id_file):
    path = tmp_path / "classes.txt"
    path.write_text("c\n\na\n")
    data = Numbers(classes=str(path), subset=id_file("n/0\nn/1\nn/2\nn/3"))
    data.setup("predict")
    assert {item.image_id: item.labels for item in data.items} == {"n/0": (0,), "n/2": (1,), "n/3": (0,)}
    space = data.class_space
    assert (space.names, space.prompts, space.indices) == (["a", "c"], ["an a", "a c"], [0, 2])
    assert (space.model_labels, space.total) == ([0, 2], 3)
    assert data.generation_prompts() == ["an a", "a c", "an a"]
    for settings, message in (
        ({"limit": 9}, f"limit asks for 9 images, but there are 5 of the classes in {path}"),
        ({"subset": id_file("n/1")}, f"Numbers has no image of the classes in {path} to evaluate"),
    ):
        with pytest.raises(InputError, match=message):
            Numbers(classes=str(path), **settings).setup("predict")


def test_factors_and_several_labels_of_some_classes(tmp_path):
    """An image stays if it has one of the classes."""
    whole = ClassSpace(["a", "a", "b"], ["a", "a", "b"], None, {"kind": [0, 1, 1]}, ids=["n1", "n2", "n3"])
    path = tmp_path / "classes.txt"
    path.write_text("n2\nb\n")
    part = whole.subset(path, "Letters")
    assert (part.names, part.ids, part.factors) == (["a", "b"], ["n2", "n3"], {"kind": [1, 1]})
    assert (part.model_labels, part.indices) == ([1, 2], None)
    data = Numbers(classes=str(path))
    data.find_items = lambda: [Item(f"n/{i}", labels) for i, labels in enumerate([(0, 1), (0,), (), (2,)])]
    path.write_text("b\nc\n")
    data.setup("predict")
    assert {item.image_id: item.labels for item in data.items} == {"n/0": (0,), "n/3": (1,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tabby cat\ntenhc\n", "line 2: Animals has no class 'tenhc'; its classes have names such as tench"),
        ("\n", "names no class; expected one class per line, such as tench"),
    ],
)
def test_invalid_classes(tmp_path, text, words):
    names = ["tench", "missile", "missile", "tabby cat"]
    whole = ClassSpace(names, names, None, ids=["n1", "n2", "n3", "n4"])
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        whole.subset(path, "Animals")
    assert str(path) in str(caught.value)


def test_an_id_that_is_listed_twice(monkeypatch):
    monkeypatch.setattr(Numbers, "find_items", lambda self: [Item("n/3", (0,)), Item("n/4", (1,)), Item("n/3", (2,))])
    with pytest.raises(InputError, match=r"Numbers lists n/3 more than once \(1 such image\)"):
        chosen()


@pytest.mark.parametrize("part", [{}, {"limit": 8}, {"per_class": 9}, {"subset": "n/1\n"}], ids=str)
def test_a_partial_dataset_is_reported_unless_a_part_was_selected(monkeypatch, caplog, id_file, part):
    monkeypatch.setattr(Numbers, "official_images", 10)
    chosen(**{key: id_file(value) if key == "subset" else value for key, value in part.items()})
    messages = [] if part else ["warning: Numbers has only 8 of 10 images; a partial run"]
    assert [record.getMessage() for record in caplog.records] == messages
    assert Numbers(**part).expected_images == (None if part else 10)
    caplog.clear()
    monkeypatch.setattr(Numbers, "official_images", 8)
    assert chosen() == chosen(limit=8)
    assert not caplog.records


def test_a_data_module_can_be_pickled():
    """Spawned workers receive it pickled, while the trainer holds a network with hooks."""
    data = Numbers()
    data.setup("predict")
    data.trainer = lambda: None
    again = pickle.loads(pickle.dumps(data))
    assert again.items == data.items
    assert again.trainer is None
