"""What a denoiser forward knows of its rows."""

import pytest
import torch

from bigain.backbones import row_keys
from bigain.backbones.forward import ForwardContext

LATENTS = torch.zeros(3, 4, 8, 12)


def of(timestep=0, class_labels=None, latents=LATENTS):
    return ForwardContext.of(latents, timestep, class_labels)


@pytest.mark.parametrize("value", [0, 1, 999, 500.5, 0.1], ids=str)
def test_the_form_of_a_timestep_does_not_matter(value):
    forms = [
        value,
        torch.tensor(value),
        torch.tensor([value]),
        torch.tensor([value] * 3),
        torch.tensor(value, dtype=torch.float64),
        torch.tensor([value], dtype=torch.float32).expand(3),
    ]
    if isinstance(value, int):
        forms += [float(value), torch.tensor(value, dtype=torch.int32)]
    contexts = [of(form) for form in forms]
    for context in contexts:
        assert context.timesteps.dtype == torch.float32
        assert context.keys.dtype == torch.int64
        assert context.timesteps.shape == context.keys.shape == context.classes.shape == (3,)
        assert torch.equal(context.timesteps, torch.full((3,), value, dtype=torch.float32))
        assert torch.equal(context.keys, contexts[0].keys)


def test_rows_have_their_own_timestep():
    context = of(torch.tensor([5, 10, 5]))
    assert context.timesteps.tolist() == [5, 10, 5]
    assert context.keys[0] == context.keys[2] != context.keys[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_dtype_does_not_round(dtype):
    torch.set_default_dtype(dtype)
    try:
        assert of(501.5).timesteps[0].item() == 501.5
    finally:
        torch.set_default_dtype(torch.float32)


def test_named_rows():
    keys, classes = torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3])
    with row_keys(keys):
        assert torch.equal(of(4).keys, keys)
        assert of(4).timesteps.tolist() == [4, 4, 4]
        assert of(4).classes.tolist() == [0, 0, 0]
        with row_keys(classes, classes):
            assert torch.equal(of(4).keys, classes)
        assert torch.equal(of(4).keys, keys)
    assert not torch.equal(of(4).keys, keys)


def test_classes_are_named_or_else_the_labels():
    labels, classes = torch.tensor([4, 5, 6]), torch.tensor([1, 2, 3])
    assert torch.equal(of(class_labels=labels).classes, labels)
    with row_keys(labels):
        assert torch.equal(of(class_labels=labels).classes, labels)
    with row_keys(labels, classes):
        assert torch.equal(of(class_labels=labels).classes, classes)
    # Stable unCLIP's labels are embeddings of images.
    for no_classes in (None, torch.randn(3, 8)):
        assert of(class_labels=no_classes).classes.tolist() == [0, 0, 0]
