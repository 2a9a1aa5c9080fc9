"""Prompts and classes as conditions of a network."""

import json
from pathlib import Path

import pytest
import torch
from models import PROMPT_TOKENS, WIDTH, save_dit, save_stable_diffusion

import bigain
from bigain.backbones import DiT, StableDiffusion
from bigain.errors import InputError

START, END = 0, 1


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    backbone = StableDiffusion(str(save_stable_diffusion(tmp_path_factory.mktemp("sd"))))
    backbone.load()
    return backbone


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    backbone = DiT(str(save_dit(tmp_path_factory.mktemp("dit"))))
    backbone.load()
    return backbone


def ids(text):
    """Letters are 2..27, the last of a word 28..53."""
    tokens = [START]
    for word in text.split():
        tokens += [2 + ord(letter) - ord("a") for letter in word[:-1]] + [28 + ord(word[-1]) - ord("a")]
    return ([*tokens[: PROMPT_TOKENS - 1], END] + [END] * PROMPT_TOKENS)[:PROMPT_TOKENS]


@pytest.mark.parametrize("prompts", [["a cat"], ["a", "a cat", ""], ["a very long prompt", "b"]])
def test_prompts_are_padded_to_the_tokenizers_length(stable_diffusion, prompts):
    conditions = stable_diffusion.conditions(prompts, range(len(prompts)))
    assert conditions.shape == (len(prompts), PROMPT_TOKENS, WIDTH)
    expected = stable_diffusion.text_encoder(torch.tensor([ids(prompt) for prompt in prompts])).last_hidden_state
    torch.testing.assert_close(conditions, expected)
    assert not conditions.requires_grad


def test_a_prompt_does_not_depend_on_the_others(stable_diffusion):
    """More prompts than go into one forward of the text encoder."""
    letters = "abcdefghij"
    prompts = [f"{first} {second}" for first in letters for second in letters]
    conditions = stable_diffusion.conditions(prompts, range(100))
    assert conditions.shape[0] == 100
    torch.testing.assert_close(conditions[70:71], stable_diffusion.conditions([prompts[70]], [0]))
    assert not torch.allclose(conditions[70], conditions[71], atol=1e-3)


def test_classes_are_indices(dit):
    conditions = dit.conditions(["prompts", "do not", "matter"], [9, 0, 4])
    assert conditions.tolist() == [9, 0, 4]
    assert conditions.dtype == torch.int64


@pytest.mark.parametrize(("indices", "named"), [([0, 10], 10), ([3, -1], -1), ([207, 0], 207)])
def test_classes_out_of_range(dit, indices, named):
    with pytest.raises(InputError, match=f"has classes 0 to 9; the dataset asks for class {named}$") as error:
        dit.check_classes(indices, 2)
    assert dit.model in str(error.value)


def test_labels_of_a_dataset_without_indices(dit, stable_diffusion):
    dit.check_classes(None, 10)
    for k in (9, 11):
        with pytest.raises(InputError, match=f"not in the label space of .* has 10 classes, the dataset {k} different"):
            dit.check_classes(None, k)
    stable_diffusion.check_classes(None, 2)


def test_prompts_that_the_model_cannot_tell_apart(stable_diffusion):
    """Eight tokens, two of them for start and end."""
    assert stable_diffusion.check_prompts(["a cat", "a dog", "a cat"], True) == ""
    with pytest.raises(InputError, match="cannot tell 'a Crane' and 'a crane' apart: it reads 8 tokens"):
        stable_diffusion.check_prompts(["a Crane", "a crane"], True)
    with pytest.raises(InputError, match="cannot tell 'a longer cat' and 'a longer dog' apart"):
        stable_diffusion.check_prompts(["a longer cat", "b", "a longer dog"], True)
    assert stable_diffusion.check_prompts(["a longer cat", "b", "a longer dog", "a longer cat"], False) == (
        "prompts cut after 8 tokens: 2 of 3, such as 'a longer cat'"
    )


def test_the_embedded_tokenizer_is_the_same_in_both_of_its_forms():
    """transformers 5 reads tokenizer.json, transformers 4 vocab.json and merges.txt: a prompt must not depend on it."""
    folder = Path(bigain.__file__).parent / "assets/shapes_unet/tokenizer"
    fast = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in fast["merges"]]
    assert json.loads((folder / "vocab.json").read_text()) == fast["vocab"]
    assert (folder / "merges.txt").read_text().splitlines()[1:] == merges
