"""Rows of fixed images are found by what they are, wherever they are in a forward."""

import pytest
import torch
from lightning.pytorch import LightningModule

from bigain.backbones import DiT
from bigain.backbones.forward import ForwardContext, RowKeys, row_keys
from bigain.data.selection import Item, first_of_classes
from bigain.diffusion.trials import trial_keys
from bigain.errors import InputError
from bigain.inspector.rows import evenly, matches, rows_of
from bigain.modules import DiffusionClassifier
from bigain.tokens.randomness import stable_hash


def context(keys, classes=None):
    with row_keys(torch.tensor(keys), None if classes is None else torch.tensor(classes)):
        return ForwardContext.of(torch.zeros(len(keys), 4, 8, 8), 500, None)


def test_evenly_has_the_first_and_the_last():
    assert evenly(range(20), 5) == [0, 5, 10, 14, 19]
    assert evenly([3, 7], 8) == [3, 7]
    assert evenly([], 8) == []
    assert evenly([3, 7], 1) == [3]


def test_a_classification_is_followed_in_the_true_class_at_trials_of_the_first_stage():
    module = DiffusionClassifier(DiT("shapes_dit"), trials=[5, 20], seed=3)
    found = rows_of(module, Item("a", (7,)), 3)
    assert found.classes.tolist() == [7, 7, 7]
    first = module.stages[0]
    trials = torch.tensor([first[0], first[2], first[4]])
    assert torch.equal(found.keys, trial_keys(torch.tensor([stable_hash("a")]), trials, 3))
    assert rows_of(module, Item("a", ()), 8).classes.tolist() == [0] * 5


def test_another_module_is_refused():
    with pytest.raises(InputError, match="rows of LightningModule are not known"):
        rows_of(LightningModule(), Item("a", (1,)), 3)


def test_the_row_of_a_key_and_a_class_is_found_and_other_rows_are_not():
    rows, which = matches(
        context([5, 5, 9, 9], [0, 1, 0, 1]), RowKeys(torch.tensor([9, 4, 5]), torch.tensor([1, 1, 0]))
    )
    assert (rows.tolist(), which) == ([3, 0], [0, 2])
    rows, which = matches(context([1, 2]), RowKeys(torch.tensor([3])))
    assert (rows.tolist(), which) == ([], [])


def test_of_a_guided_pair_the_row_with_its_condition_is_meant():
    # Three items without and with their condition, the last one filled up with a copy.
    rows, which = matches(context([7, 8, 8, 7, 8, 8]), RowKeys(torch.tensor([7, 8])))
    assert (rows.tolist(), which) == ([3, 5], [0, 1])


def test_images_are_the_first_of_each_class_and_then_the_next():
    items = [Item(name, labels) for name, labels in zip("abcdef", [(0,), (0,), (2,), (), (1, 2), (1,)], strict=True)]
    assert [item.image_id for item in first_of_classes(items, 3)] == ["a", "c", "d"]
    assert [item.image_id for item in first_of_classes(items, 5)] == ["a", "c", "d", "e", "b"]
    # Whoever follows more of them follows the same ones before: their maps are stored by their place.
    for count in range(10):
        assert first_of_classes(items, count) == first_of_classes(items, 9)[:count]
    assert set(first_of_classes(items, 9)) == set(items)
