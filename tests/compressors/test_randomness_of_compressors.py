"""The random choice of a row is a function of (seed, row key, site): never of batch, content or class."""

import pytest
import torch
from cases import every_network
from models import forward, inputs, shared

import bigain.compressors.lgtm
import bigain.compressors.merging
import bigain.compressors.sito
import bigain.compressors.tome
from bigain.backbones import row_keys
from bigain.compressors import CAM, LGTM, SiTo, ToMe, Where


def tome(**kwargs):
    return ToMe(ratio=0.5, **kwargs)


def lgtm(destination="random", **kwargs):
    return LGTM(ratio=0.5, destination=destination, **kwargs)


def sito(**kwargs):
    # Noise that outweighs the similarities.
    return SiTo(noise_alpha=100.0, **kwargs)


every_random = pytest.mark.parametrize("make", [tome, lgtm, sito])
every_redrawn = pytest.mark.parametrize("make", [tome, lgtm])


@pytest.fixture
def drawn(monkeypatch):
    """Every random table of a forward, in the order of the sites."""
    tables = []

    def record(module, name):
        original = getattr(module, name)

        def spy(*args, **kwargs):
            tables.append(original(*args, **kwargs))
            return tables[-1]

        monkeypatch.setattr(module, name, spy)

    record(bigain.compressors.merging, "random_destinations")
    record(bigain.compressors.sito, "random_normal")
    return tables


def choose(compressor, given, network="unet", keys=None, classes=None):
    """Run a forward."""
    with compressor.applied_to(shared(network)) as model:
        if keys is None:
            return forward(model, given)
        classes = None if classes is None else torch.tensor(classes)
        with row_keys(torch.tensor(keys), classes):
            return forward(model, given)


@every_random
@every_network
def test_a_choice_is_a_function_of_seed_key_and_site(make, network, drawn):
    """Not of the batch, the position in it, or the content."""
    choose(make(), inputs(network, 3), network, [7, 8, 2**40])
    batch, drawn[:] = list(drawn), []
    choose(make(), inputs(network, 5, seed=2), network, [1, 2**40, 8, 3, 8])
    assert len(batch) == len(drawn) == {"unet": 3, "dit": 5}[network]
    for first, second in zip(batch, drawn, strict=True):
        assert torch.equal(first[2], second[1])
        assert torch.equal(first[1], second[2])
        assert torch.equal(first[1], second[4])
    choose(make(seed=1), inputs(network, 1), network, [7])
    tables = {tuple(row.flatten().tolist()) for table in [*batch, *drawn[len(batch) :]] for row in table}
    assert len(tables) == 4 * len(batch)


@every_random
def test_guided_pairs_choose_alike(make, drawn):
    """Both halves carry one key, or one timestep; the text differs."""
    given = inputs("unet", 2)
    given["sample"] = given["sample"][:1].repeat(2, 1, 1, 1)
    for timestep in (torch.tensor(321), torch.tensor([321, 321])):
        choose(make(), {**given, "timestep": timestep})
    choose(make(), given, "unet", [4, 4])
    assert len(drawn) == 9
    assert all(torch.equal(table[0], table[1]) for table in drawn)


@every_redrawn
@every_network
def test_only_redrawn_depends_on_the_class(make, network, drawn):
    choose(make(destination="random"), inputs(network, 3), network, [7, 7, 7], [0, 1, 0])
    shared_tables, drawn[:] = list(drawn), []
    choose(make(destination="redrawn"), inputs(network, 3), network, [7, 7, 7], [0, 1, 0])
    for table in shared_tables:
        assert torch.equal(table[0], table[1])
        assert torch.equal(table[0], table[2])
    for table in drawn:
        assert not torch.equal(table[0], table[1])
        assert torch.equal(table[0], table[2])


def test_redrawn_reads_the_labels_of_a_dit(drawn):
    """If no classes are set; a U-Net has none."""
    given = {**inputs("dit", 3), "class_labels": torch.tensor([4, 5, 4]), "timestep": torch.full((3,), 10)}
    choose(tome(destination="redrawn"), given, "dit")
    assert all(torch.equal(table[0], table[2]) and not torch.equal(table[0], table[1]) for table in drawn)
    drawn[:] = []
    choose(tome(destination="redrawn"), given, "dit", [1, 1, 1], [6, 6, 7])
    assert all(torch.equal(table[0], table[1]) and not torch.equal(table[0], table[2]) for table in drawn)
    drawn[:] = []
    choose(tome(destination="redrawn"), {**inputs("unet", 2), "timestep": 10})
    assert all(torch.equal(table[0], table[1]) for table in drawn)


def test_the_site_counts_and_not_the_selection(drawn):
    """Narrowing `where` leaves the choice at the other sites as it was."""
    choose(tome(), inputs("unet", 2), "unet", [1, 2])
    choose(tome(where=Where(blocks=[6])), inputs("unet", 2), "unet", [1, 2])
    choose(CAM(tome(where=Where(part="up"))), inputs("unet", 2), "unet", [1, 2])
    assert torch.equal(drawn[3], drawn[2])
    assert torch.equal(drawn[4], drawn[1])
    assert len(drawn) == 5


def test_the_numbers_never_change(drawn):
    """Pinned: results of old runs stay comparable."""
    narrow = tome(seed=1, where=Where(blocks=[6]))
    choose(narrow, inputs("unet", 1), "unet", [12345])
    choose(narrow, {**inputs("unet", 1), "timestep": 500.5})
    by_key = [13, 3, 16, 18, 21, 10, 24, 39, 41, 42, 44, 47, 49, 51, 64, 55, 57, 59, 73, 87, 76, 91, 92, 83]
    by_time = [1, 15, 16, 19, 20, 22, 24, 27, 29, 42, 32, 46, 48, 51, 64, 66, 57, 58, 73, 74, 89, 79, 80, 95]
    assert [table[0].tolist() for table in drawn] == [by_key, by_time]
