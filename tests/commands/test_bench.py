"""`bigain bench`: the real command on embedded and random models, its JSON, refusals, and code that torch compiles."""

import json
import shutil
from contextlib import ExitStack
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from graphs import on_cpu  # noqa: F401 -- a fixture
from models import tiny_dit
from program import message_of
from torch import nn

import bigain.commands.bench.measure
from bigain.backbones import DiT
from bigain.backbones.geometry import with_denoiser
from bigain.commands.bench.limit import FreePlan, free_plan, limit_of
from bigain.commands.bench.measure import Entrant, compressors_of, enter, measure, race
from bigain.commands.bench.subject import Subject
from bigain.commands.flops.model import CountedModel
from bigain.commands.main import main
from bigain.compressors import ABM, CAM, IEKVD, LGTM, Compressor, SiTo, ToDo, ToMe
from bigain.compressors.lgtm import LGTM as LGTMClass
from bigain.cost.flops import Flops
from bigain.errors import InputError

CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--repetitions", "2"]
LGTM_AND_IEKVD = ["--compressor", "LGTM", "--compressor.ratio", "0.7", "--compressor=IEKVD", "--compressor.factor", "2"]
pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def refused(capsys):
    return lambda *args: message_of(capsys, lambda: main(["bench", *args]))


def subject(batch=2, dtype=torch.float32, name="shapes_dit"):
    return Subject.of(CountedModel.of(name, None), batch, dtype, CPU, False)


def test_json_of_the_embedded_model(capsys, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(bigain.commands.bench.measure, "_MIN_SECONDS", 1e-9)
    measured, measure = [], bigain.commands.bench.measure.measure
    monkeypatch.setattr(bigain.commands.bench.measure, "measure", lambda *args: measured.append(1) or measure(*args))
    monkeypatch.setattr(bigain.tokens.dispatch, "kernels_note", lambda: "of the methods" if measured else "of none")
    state = torch.get_rng_state()
    # Two threads would wait for each other on a busy machine.
    torch.set_num_threads(2)
    try:
        assert main(["bench", "--model", "shapes_dit", *QUICK, "--threads", "1", *LGTM_AND_IEKVD, "--json"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert torch.equal(torch.get_rng_state(), state)
    assert result["model"] == "shapes_dit"
    assert result["weights"] == "loaded"
    assert (result["batch"], result["dtype"], result["compile"], result["threads"]) == (2, "bfloat16", "none", 1)
    assert result["attention_backend"] == "AttnProcessor2_0"
    assert result["kernels"] == "of the methods"
    assert result["finite"]
    assert result["forwards_per_round"] == 1
    base, (lgtm, iekvd) = result["baseline"], result["methods"]
    assert base["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert base["realised_percent"] is base["limit_ratio"] is base["of_limit_percent"] is None
    for row in (lgtm, iekvd):
        assert row["error"] is None
        assert 0 < row["milliseconds"]["low"] <= row["milliseconds"]["median"] <= row["milliseconds"]["high"]
        assert row["promised_ratio"] == pytest.approx(row["gflops"] / base["gflops"])
        assert row["limit_error"] is None
        assert row["limit_ratio"]["low"] > 0
        assert 0 < row["overhead_milliseconds"]["matching"] < row["milliseconds"]["high"]
    assert (lgtm["class"], lgtm["settings"]["ratio"]) == ("LGTM", 0.7)
    assert (iekvd["class"], iekvd["settings"]["factor"]) == ("IEKVD", 2)
    assert lgtm["overhead_milliseconds"]["merging"] > 0
    assert iekvd["overhead_milliseconds"]["merging"] == 0
    assert "warning: 2 repetitions" in streams.err
    assert "bfloat16 is slow, torch has no fast bfloat16 for this processor; use --dtype float32" in streams.err
    assert "round 2 of 2: none" in streams.err


def test_the_table_and_the_methods_of_the_paper(capsys, monkeypatch):
    monkeypatch.setattr(bigain.commands.bench.measure, "_MIN_SECONDS", 1e9)
    monkeypatch.setattr(bigain.commands.bench.measure, "_MAX_FORWARDS", 2)
    args = ["--model", "shapes_dit", *QUICK, "--batch", "1", "--dtype", "float32", "--channels-last"]
    assert main(["bench", *args, "--repetitions", "1"]) == 0
    output = capsys.readouterr().out
    for word in ("LGTM(ratio=0.7", "ABM(ratio=0.7)", "IEKVD(factor=2", "channels last", "float32", "of the limit"):
        assert word in output
    assert "rounds   1, each method 2 times in a row in each" in output


def test_sizes_alone_are_enough_and_the_weights_are_the_same_each_time(stand_in, tmp_path):
    shutil.copytree(stand_in, tmp_path / "sizes", ignore=shutil.ignore_patterns("*.safetensors"))
    one, two = (subject(dtype=torch.bfloat16, name=str(tmp_path / "sizes")) for _ in range(2))
    assert one.weights == "random"
    assert one.noisy.shape == (2, 4, 16, 16)
    assert {parameter.dtype for parameter in one.backbone.denoiser.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        assert torch.equal(one.forward(), two.forward())
        assert one.forward().isfinite().all()
    loaded = subject(name=str(stand_in))
    assert loaded.weights == "loaded"
    weights = dict(loaded.backbone.denoiser.named_parameters())
    drawn = [(name, weight) for name, weight in one.backbone.denoiser.named_parameters() if weight.ndim > 1]
    assert all(not torch.equal(weight.float(), weights[name]) for name, weight in drawn)


def test_a_twin_shares_weights_and_has_hooks_of_its_own():
    original = subject()
    twin = original.twin()
    mine, its = original.backbone.denoiser, twin.backbone.denoiser
    assert all(a is b for a, b in zip(mine.parameters(), its.parameters(), strict=True))
    with torch.inference_mode():
        plain = original.forward()
        with LGTM(ratio=0.7).applied_to(its):
            assert not torch.equal(twin.forward(), plain)
            assert torch.equal(original.forward(), plain)
        assert torch.equal(twin.forward(), plain)


@pytest.mark.parametrize("how", ["whole", "regional"])
def test_compiled_code_keeps_each_methods_hooks(how, monkeypatch):
    """Torch would take the code of the first network for all of the same sizes; the real tracer, no code generation."""
    compile_module, forward, seen = nn.Module.compile, Subject.forward, []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager"))

    def watched(self):
        seen.append(forward(self))
        return seen[-1]

    noisy, rows = torch.randn(1, 4, 16, 16), torch.tensor([7])
    tiny = Subject(with_denoiser(DiT("tiny"), tiny_dit(num_layers=1)), "random", noisy, rows, rows)
    lgtm = LGTM(ratio=0.7)
    with torch.inference_mode():
        plain, twin = tiny.forward(), tiny.twin()
        with lgtm.applied_to(twin.backbone.denoiser):
            merged = twin.forward()
    monkeypatch.setattr(Subject, "forward", watched)
    entrants = measure(tiny, [lgtm], 1, how)
    assert [entrant.error for entrant in entrants] == [None] * 2
    assert all(e.phases is None and len(e.seconds) == len(e.reference) == 1 for e in entrants)
    # The first two forwards are the first of each.
    torch.testing.assert_close(seen[0], plain)
    torch.testing.assert_close(seen[1], merged)
    assert not torch.allclose(plain, merged)


@pytest.mark.parametrize(
    ("compressor", "lengths"),
    [
        (CAM(LGTM(ratio=0.7, modules=("self_attn", "mlp"))), {"attn1": 77, "ff": 77}),
        (ABM(ratio=0.5), {"attn1": 130, "ff": 256}),
        (IEKVD(factor=2), {"attn1": 256, "ff": 256}),
    ],
)
@torch.inference_mode()
def test_the_limit_keeps_as_many_tokens_at_the_same_sites(compressor, lengths):
    own = subject(batch=1)
    with ExitStack() as undo:
        (_, method), (limit,) = enter(own, [compressor], undo)
        assert method.limit is limit
        seen = [read_lengths(entrant.subject.backbone.denoiser, undo) for entrant in (method, limit)]
        outputs = [entrant.subject.forward() for entrant in (method, limit)]
    assert seen[0] == seen[1]
    assert [seen[1][0][name] for name in lengths] == list(lengths.values())
    assert seen[1][0]["keys"] == (64 if isinstance(compressor, IEKVD) else lengths["attn1"])
    assert not torch.equal(*outputs)


def read_lengths(denoiser, undo):
    """Tokens that each block's modules compute with, as they run."""
    lengths = [{} for _ in denoiser.transformer_blocks]
    for seen, block in zip(lengths, denoiser.transformer_blocks, strict=True):
        for name, module in (("attn1", block.attn1.to_q), ("keys", block.attn1.to_k), ("ff", block.ff.net[0])):
            write = partial(lambda seen, name, module, args: seen.update({name: args[0].shape[1]}), seen, name)
            undo.callback(module.register_forward_pre_hook(write).remove)
    return lengths


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_free_plan_restores_the_rows_that_it_keeps(kernels, monkeypatch):
    if kernels == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("BIGAIN_KERNELS", kernels)
    x = torch.randn(3, 60, 16)
    plan = free_plan(x, 17)
    short = plan.merge(x)
    assert short.shape == (3, 17, 16)
    full, kept = plan.unmerge(short), plan.kept[0]
    assert torch.equal(full[:, kept], x[:, kept])
    assert plan.restore[0].bincount().tolist() == kept.diff(append=torch.tensor([60])).tolist()
    assert isinstance(plan, FreePlan) == (kernels == "torch")


def test_methods_that_keep_as_many_tokens_share_a_limit_and_others_have_none():
    own, kinds = subject(), [ToMe(ratio=0.7), SiTo(ratio=0.7), LGTM(ratio=0.5), ToDo(factor=2), IEKVD(factor=2)]
    with ExitStack() as undo:
        entrants, limits = enter(own, kinds, undo)
        tome, sito, lgtm, todo, iekvd = (entrant.limit for entrant in entrants[1:])
        assert len(limits) == 3
        assert tome is sito is limits[0]
        assert (lgtm, todo) == (limits[1], limits[2])
        assert todo is iekvd
    assert limit_of(Mock(spec=Compressor, sites_of=lambda _: ()), own.backbone.denoiser, own.noisy) is None


def test_a_method_without_effect_or_that_fails_is_reported(capsys, monkeypatch):
    def idle(self, layout, site, context, undo):
        pass

    monkeypatch.setattr(LGTMClass, "hook_site", idle)

    def fails(self, x, site, context):
        if x.device.type == "meta":
            return x[:, ::4]
        raise RuntimeError("out of memory: tried to allocate 10 GiB")

    monkeypatch.setattr(IEKVD, "downsample", fails)
    args = ["--model", "shapes_dit", *QUICK, *LGTM_AND_IEKVD, "--compressor", "ToDo", "--compressor.factor", "2"]
    assert main(["bench", *args]) == 1
    output = capsys.readouterr().out
    assert "LGTM(ratio=0.7, destination=cell): not measured: its output equals that of the network" in output
    assert "IEKVD(factor=2, alpha=0.9): not measured: RuntimeError: out of memory: tried to allocate" in output
    assert "ToDo(factor=2)" in output


def test_options_belong_to_the_compressor_before_them():
    cam = ["--compressor", "CAM", "--compressor.inner", "LGTM", "--compressor.inner.ratio=0.5"]
    todo = ["--compressor=ToDo", "--compressor.factor", "3"]
    first, second = compressors_of([*cam, *todo])
    assert (first.inner.ratio, second.factor) == (0.5, 3)
    with pytest.raises(InputError, match="before any --compressor"):
        compressors_of(["--compressor.ratio", "0.7", "--compressor", "LGTM"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "sd9"], "no model 'sd9'"),
        (["--compressor", "LGTM"], "ratio"),
        (["--compressor", "LGTM", "--compressor.ratio", "0.9"], "at most 0.75"),
        (["--compressor", "ToDo", "--compressor.factor", "99"], "does not fit"),
        (["--compressor", "ToDo", "--compressor.factor=2", "--compressor.during", "[0,99]"], "ToDo changes with the"),
        (["--compressor", "null"], "always measured"),
        (["--compressor", "absent.yaml"], "absent.yaml"),
        (["--dtype", "int8"], "one of bfloat16, float16, float32"),
        (["--batch", "0"], "batch must be at least 1, not 0"),
        (["--device", "cuda:99"], "no device cuda:99"),
        (["--device", "mps"], "cannot be measured"),
        (["--device", "tpu"], "device must be"),
        (["--rounds", "3"], "--rounds"),
    ],
)
def test_refusals(refused, args, words):
    model = [] if "--model" in args else ["--model", "shapes_dit"]
    assert words in refused(*model, *args)


@pytest.mark.parametrize(
    ("seconds", "reference", "promised", "ratio", "realised"),
    [
        # A machine that becomes twice as slow: every ratio is 0.8, the ratio of medians is not.
        ([8, 8, 16], [10, 10, 20], 0.875, (0.8, 0.8, 0.8), (160, 160, 160)),
        ([9.2, 9, 11], [10, 10, 10], 0.876, (0.92, 0.9, 1.1), (800 / 12.4, -1000 / 12.4, 1000 / 12.4)),
        # Slower than without, and a method that promises nothing.
        ([12.5], [10], 0.875, (1.25, 1.25, 1.25), (-200, -200, -200)),
        ([9], [10], 1.0, (0.9, 0.9, 0.9), None),
    ],
)
def test_ratios_are_of_the_same_round_and_show_what_is_real(seconds, reference, promised, ratio, realised):
    flops, baseline = (Flops({"mlp": int(total * 1000)}) for total in (promised, 1))
    row = Entrant(None, seconds=seconds, reference=reference).row(flops, baseline)
    assert tuple(row["ratio"].values()) == pytest.approx(ratio)
    assert row["milliseconds"]["median"] == 1e3 * sorted(seconds)[len(seconds) // 2]
    assert row["limit_ratio"] is row["of_limit_percent"] is None
    assert realised == (row["realised_percent"] and pytest.approx(tuple(row["realised_percent"].values())))


@pytest.mark.parametrize(
    ("of_limit", "limit", "share"),
    [
        # In the same rounds: the median ratio of the limit is 0.8.
        ([8, 7, 9], (0.8, 0.7, 0.9), (50, 0, 150)),
        ([9.95, 9.95, 9.95], (0.995, 0.995, 0.995), None),
    ],
)
def test_of_the_limit(of_limit, limit, share):
    reference, flops = [10, 10, 10], Flops({"mlp": 1000})
    free = Entrant(None, seconds=of_limit, reference=reference)
    entrant = Entrant(None, seconds=[9, 10, 7], reference=reference, limit=free)
    row = entrant.row(flops, flops)
    assert tuple(row["limit_ratio"].values()) == pytest.approx(limit)
    assert share == (row["of_limit_percent"] and pytest.approx(tuple(row["of_limit_percent"].values())))
    free.error = "out of memory"
    row = entrant.row(flops, flops)
    assert (row["limit_error"], row["limit_ratio"], row["of_limit_percent"]) == ("out of memory", None, None)


def test_a_time_limit_ends_a_race(monkeypatch):
    monkeypatch.setattr(bigain.commands.bench.measure, "_MIN_SECONDS", 1e-9)
    entrant = Entrant(subject(batch=1))
    with torch.inference_mode():
        race([entrant], 50, most_seconds=0)
    assert len(entrant.seconds) == 3


@pytest.mark.usefixtures("on_cpu")
def test_graphs_are_timed_and_what_cannot_be_recorded_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(bigain.commands.bench.measure, "_MIN_SECONDS", 1e-9)
    args = ["--model", "shapes_dit", *QUICK, *LGTM_AND_IEKVD, "--cuda-graph", "--json"]
    assert main(["bench", *args]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cuda_graph"]
    for row in (result["baseline"], *result["methods"]):
        assert row["ratio"]["median"] > 0
        assert row["overhead_milliseconds"] is None

    downsample = IEKVD.downsample

    def reads_a_number(self, x, site, context):
        assert x.is_meta or x.sum().item() < 1e9
        return downsample(self, x, site, context)

    monkeypatch.setattr(IEKVD, "downsample", reads_a_number)
    assert main(["bench", *args]) == 1
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert methods[0]["error"] is None
    assert methods[1]["error"].startswith("RuntimeError: CUDA graphs: none: operation not permitted when stream is")


def test_graphs_need_a_gpu_and_code_that_is_not_compiled(refused):
    small = ["--model", "shapes_dit", *QUICK, "--cuda-graph"]
    assert refused(*small).endswith("cannot run: RuntimeError: CUDA graphs: none: the network is on cpu")
    assert "--cuda-graph is true and --compile is whole; set one of" in refused(*small, "--compile", "whole")
