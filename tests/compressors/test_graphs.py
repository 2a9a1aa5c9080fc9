"""Forwards replayed from graphs: the same numbers with every compressor, from copied inputs, and nothing stale.

A stand-in records operators on the CPU and runs them again without Python; tests/gpu has the real thing.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import Seen, build, every_method_and_network
from graphs import Recorder, on_cpu  # noqa: F401 -- a fixture
from models import CPU, PROMPT_TOKENS, WIDTH, forward, fresh, inputs, tiny_dit, tiny_unet
from torch.utils._pytree import tree_map_only

from bigain.backbones import DiT, row_keys
from bigain.backbones.compilation import compiled
from bigain.backbones.cuda_graphs import graphs_note, graphs_of, use_graphs
from bigain.backbones.flux import image_ids
from bigain.backbones.forward import pair_sharing
from bigain.backbones.sharing import share
from bigain.compressors import LGTM, ToDo, ToMe
from bigain.errors import InputError
from bigain.tokens.grid import Grid

pytestmark = pytest.mark.usefixtures("on_cpu")
KEYS = [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])]


def run(model, given, keys=None, timestep=None):
    """Each time from new tensors, as in a run; outputs must not change with the next forward."""
    given = tree_map_only(torch.Tensor, torch.clone, given)
    with torch.inference_mode():
        if keys is None:
            return model(**given, return_dict=False)[0]
        with row_keys(keys.clone(), timestep=timestep):
            return model(**given, return_dict=False)[0]


def calls(network):
    return [(inputs(network, seed=seed), keys) for seed, keys in zip((1, 2), KEYS, strict=True)]


@every_method_and_network
def test_replays_compute_the_same(case, network):
    model = fresh(network)
    with build(case).applied_to(model):
        expected = [run(model, *call) for call in calls(network)]
        use_graphs(model)
        actual = [run(model, *call) for _ in range(2) for call in calls(network)]
        assert (graphs_note(model), graphs_of(model).replays) == ("1 recorded", 3)
    assert all(map(torch.equal, actual, 2 * expected))
    assert not torch.equal(*expected)


def test_a_skipped_step_is_recorded_apart():
    model, given = fresh("unet"), inputs("unet")
    plain = run(model, given, KEYS[0])
    with ToDo(factor=2, skip_zero=True).applied_to(model):
        compressed = run(model, given, KEYS[0], timestep=500)
        use_graphs(model)
        for _ in range(2):
            assert torch.equal(run(model, given, KEYS[0], timestep=0), plain)
            assert torch.equal(run(model, given, KEYS[0], timestep=500), compressed)
        assert (graphs_note(model), graphs_of(model).replays) == ("2 recorded", 2)
    assert not torch.equal(plain, compressed)


@pytest.fixture
def conditions():
    return torch.randn(5, PROMPT_TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("compressor", [None, ToMe(ratio=0.5), LGTM(ratio=0.5, destination="redrawn")])
def test_classes_and_shared_rows_are_copied(compressor, conditions):
    """Forwards of 8 rows of (image, class) with 5 classes, then with 2; keys of prompts are computed in the first."""
    model = fresh("unet")
    given = inputs("unet", 8)
    installed = None if compressor is None else compressor.install(model)

    def classify(first, classes):
        numbers = torch.arange(first, first + 8)
        pair, label = numbers // classes, numbers % classes
        rows = {name: value[pair - pair[0]] for name, value in given.items()}
        rows["encoder_hidden_states"] = conditions[label]
        sharing = pair_sharing(8, first, first + 7, classes, label.device)
        with torch.inference_mode(), row_keys(pair + 100, label, sharing):
            return model(**rows, return_dict=False)[0]

    forwards = [(0, 5), (8, 5), (16, 5), (0, 2), (8, 2)]
    with share(model, conditions):
        expected = [classify(*size) for size in forwards]
    use_graphs(model)
    with share(model, conditions):
        assert all(map(torch.equal, [classify(*size) for size in forwards], expected))
        assert (graphs_note(model), graphs_of(model).replays) == ("2 recorded", 3)
    # The memory of the keys of prompts is free again.
    assert graphs_note(model) == "0 recorded"
    with share(model, conditions.flip(0)):
        assert not torch.equal(classify(0, 5), expected[0])
    if installed is not None:
        installed.close()


def test_other_shapes_arguments_and_weights_are_recorded_apart():
    model, plain, given = tiny_dit(num_layers=1), tiny_dit(num_layers=1), inputs("dit")
    use_graphs(model)
    kinds = [
        given,
        {name: value[:2] for name, value in given.items()},
        {**given, "timestep": given["timestep"].float()},
        {**given, "hidden_states": given["hidden_states"].to(memory_format=torch.channels_last)},
    ]
    for changed in [*kinds, *kinds, {**given, "class_labels": given["class_labels"] + 1}]:
        for keys in (None, KEYS[0]):
            assert torch.equal(run(model, changed, keys), run(plain, changed, keys))
    assert (graphs_note(model), graphs_of(model).replays) == ("8 recorded", 10)
    # Weights that change in their place are seen; others are recorded again.
    before = run(model, given)
    next(model.parameters()).data.mul_(1.5)
    changed = run(model, given)
    assert not torch.equal(changed, before)
    model.to(torch.float64).to(torch.float32)
    assert torch.equal(run(model, given), changed)
    # No forward can use the graphs of other weights again.
    assert graphs_note(model) == "1 recorded"


def test_a_replaced_parameter_is_noticed_whichever_it_is():
    model, given = tiny_dit(num_layers=2), inputs("dit")
    use_graphs(model)
    before = [run(model, given) for _ in range(2)][1]
    layer = model.transformer_blocks[1].attn1.to_v
    layer.weight = torch.nn.Parameter(3 * layer.weight.detach(), requires_grad=False)
    plain = tiny_dit(num_layers=2)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(run(model, given), run(plain, given))
    assert not torch.equal(run(model, given), before)
    # A buffer, too.
    model.pos_embed.pos_embed = plain.pos_embed.pos_embed = 2 * model.pos_embed.pos_embed
    assert torch.equal(run(model, given), run(plain, given))


@pytest.mark.parametrize("compressor", [None, ToMe(ratio=0.5, destination="redrawn")])
def test_timesteps_that_are_numbers_are_inputs_of_one_graph(compressor):
    """As schedulers of EDM and flow matching have them. The timestep is also what redraws tables."""
    model, given = tiny_unet(), inputs("unet")
    calls = [{**given, "timestep": timestep} for timestep in (999, 500.5, 500.25, 0.1)]
    installed = None if compressor is None else compressor.install(model)
    expected = [run(model, call) for call in calls]
    use_graphs(model)
    assert all(map(torch.equal, [run(model, call) for call in calls], expected))
    assert (graphs_note(model), graphs_of(model).replays) == ("1 recorded", 3)
    if installed is not None:
        installed.close()


def test_hooks_come_and_go():
    model, given = tiny_dit(num_layers=2), inputs("dit")
    plain = run(model, given)
    use_graphs(model)
    assert compiled(model) == "none"
    assert torch.equal(run(model, given), plain)
    with LGTM(ratio=0.5).applied_to(model):
        compressed = run(model, given)
        assert torch.equal(run(model, given), compressed)
    assert torch.equal(run(model, given), plain)
    assert not torch.equal(plain, compressed)


def test_forwards_that_are_watched_run_python():
    model, given, onlooker = tiny_dit(num_layers=2), inputs("dit"), Seen()
    compressor = LGTM(ratio=0.5)
    use_graphs(model)
    with compressor.applied_to(model):
        outputs = [run(model, given) for _ in range(2)]
        compressor.onlookers.append(onlooker)
        outputs.append(run(model, given))
        assert graphs_of(model).replays == 1
        assert len(onlooker.decisions) == 2
        compressor.onlookers.clear()
        outputs.append(run(model, given))
        assert graphs_of(model).replays == 2
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_maps_of_equal_size_and_other_sides_are_recorded_apart():
    model, given = fresh("flux"), inputs("flux")
    maps = [{**given, "img_ids": image_ids(Grid(*sides), CPU)} for sides in ((8, 12), (12, 8))]
    with LGTM(ratio=0.5).applied_to(model):
        expected = [run(model, call) for call in maps]
        use_graphs(model)
        actual = [run(model, call) for _ in range(2) for call in maps]
        assert (graphs_note(model), graphs_of(model).replays) == ("2 recorded", 2)
    assert all(map(torch.equal, actual, 2 * expected))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_forward_that_cannot_be_recorded_runs_as_before(name, caplog):
    model, given = tiny_unet() if name == "unet" else tiny_dit(num_layers=1), inputs(name)
    expected = run(model, given)
    use_graphs(model)
    handle = model.register_forward_hook(lambda module, args, output: float(output[0].sum()) and None)
    assert all(torch.equal(run(model, given), expected) for _ in range(3))
    reason = "operation not permitted when stream is capturing: aten.item.default"
    assert [record.message for record in caplog.records] == [f"warning: no CUDA graphs: {reason}"]
    assert graphs_note(model) == f"none: {reason}"
    assert graphs_of(model) is None
    handle.remove()


def test_no_gpu_and_gradients_are_reasons(caplog, monkeypatch):
    model, given = tiny_dit(num_layers=1), inputs("dit")
    expected = forward(model, given)
    use_graphs(model)
    model(**given, return_dict=False)
    assert graphs_note(model) == "none: gradients are enabled"
    monkeypatch.undo()
    use_graphs(model)
    assert graphs_of(model) is None
    assert torch.equal(run(model, given), expected)
    assert graphs_note(model) == "none: the network is on cpu"
    assert len(caplog.records) == 2


def test_other_arguments_and_outputs_run_as_before():
    model, given = tiny_dit(num_layers=1), inputs("dit")
    expected = run(model, given)
    use_graphs(model)
    with torch.inference_mode():
        assert torch.equal(model(**given).sample, expected)
    assert graphs_note(model) == "none: the network returns a Transformer2DModelOutput, not a tuple (return_dict=False)"
    use_graphs(model)
    with torch.inference_mode():
        output = model(**given, cross_attention_kwargs={"scale": {1.0}}, return_dict=False)[0]
    assert torch.equal(output, expected)
    assert graphs_note(model).startswith("none: an argument is neither a tensor nor hashable")


def test_threads_do_not_share_a_replay():
    model, calls = tiny_dit(num_layers=1), [inputs("dit", seed=seed) for seed in range(4)]
    expected = [run(model, call) for call in calls]
    use_graphs(model)
    run(model, calls[0])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(lambda call: run(model, call), calls), expected))


def test_without_memory_for_a_recording_there_is_room_for_a_smaller_one(monkeypatch):
    model, given = tiny_dit(num_layers=1), inputs("dit")
    use_graphs(model)
    run(model, given)

    def full(self, forward):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", full)
        with pytest.raises(torch.OutOfMemoryError):
            run(model, {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in given.items()})
    assert graphs_note(model) == "0 recorded"
    run(model, given)
    assert graphs_note(model) == "1 recorded"


def test_graphs_or_compiled_code():
    with pytest.raises(InputError, match="cuda_graph is true and compile is whole; set one of them"):
        DiT("shapes_dit", compile="whole", cuda_graph=True)
