"""The Triton kernels against the torch functions; on a CPU by Triton's interpreter, see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import forward, fresh, inputs

from bigain.compressors import ABM, CAM, IEKVD, LGTM, AveragePool, FrequencyKV, SiTo, ToMe, Where
from bigain.diffusion.schedules import Linear
from bigain.errors import InputError
from bigain.tokens import dispatch
from bigain.tokens.block_merging import block_merging
from bigain.tokens.destinations import (
    cell_destinations,
    first_destinations,
    random_destinations,
    released_destinations,
)
from bigain.tokens.downsampling import (
    downsample_average,
    downsample_nearest,
    frequency_selection,
    interextrapolate,
)
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.matching import bipartite_matching
from bigain.tokens.randomness import mix, random_normal
from bigain.tokens.scores import l2_norm, laplacian_l1
from bigain.tokens.similarity_pruning import similarity_pruning

kernels = pytest.importorskip("bigain.tokens.kernels.plans", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
every_shape = pytest.mark.parametrize(
    ("grid", "cell", "c", "dtype"),
    [
        (Grid(4, 6), Cell(2, 2), 64, torch.float32),
        # Strips that no cell holds; sizes that are no power of two.
        (Grid(5, 5), Cell(2, 2), 64, torch.float16),
        (Grid(4, 6), Cell(1, 3), 80, torch.bfloat16),
    ],
)


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch):
    monkeypatch.setenv("BIGAIN_KERNELS", "triton")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(grid, c, dtype, kind="smooth"):
    """Two sequences; `ties`: of +-1, whose scores and cosines are exact and often equal."""
    x = draw(2, grid.n, c)
    if kind == "ties":
        x = x.sign()
    return x.to(DEVICE, dtype)


def keys():
    return torch.tensor([3, -(2**62)], device=DEVICE), torch.tensor([7, 900], device=DEVICE)


def same(tables, expected):
    plan = kernels.KernelPlan(tables, expected.kept.shape[1], mode=expected.mode)
    for name in ("kept", "removed", "target", "restore"):
        assert torch.equal(getattr(plan, name), getattr(expected, name)), name
    return plan


def rules(x, grid, cell):
    """Arguments of kernels by name, with the destinations that torch chooses."""
    row, classes = keys()
    key, seed, site = mix(row, 2**40 + 1, 5), 2**40 + 1, 5
    given = random_destinations(key, grid, cell)
    score = laplacian_l1(x, grid)
    found = {
        "flattest": (("flattest",), cell_destinations(score, grid, cell)),
        "first": (("first",), first_destinations(grid, cell, x.device)),
        "drawn": (("drawn", None, row, None, seed, site), given),
        "redrawn": (("drawn", None, row, classes, seed, site), random_destinations(mix(key, classes), grid, cell)),
        "given": (("given", given), given),
    }
    if grid.w % cell.w == 0:
        found["released"] = (("released",), released_destinations(score, grid, cell))
    return found


@every_shape
def test_matching(grid, cell, c, dtype):
    # Norms of 8 are exact, and so are all ties.
    x, most = tokens(grid, c, dtype, "ties" if c == 64 else "smooth"), grid.n - cell_count(grid, cell)
    cases = rules(x, grid, cell)
    if dtype != torch.float32:
        # Scores and similarities depend on the type, what is drawn or given does not.
        cases = {name: cases[name] for name in ("flattest", "redrawn")}
    for number, (name, (arguments, destination)) in enumerate(cases.items()):
        removed = most if number % 3 == 0 else 1 if number % 3 == 1 else most // 2
        defaults = ("", None, None, None, 0, 0)
        tables = kernels.bipartite(x, grid, cell, removed, *arguments, *defaults[len(arguments) :])
        expected = bipartite_matching(x, destination, removed)
        plan = same(tables, expected)
        merged = plan.merge(x)
        # The order of sums differs.
        torch.testing.assert_close(merged, expected.merge(x), msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal(plan.unmerge(merged), expected.unmerge(merged)), name
        assert torch.equal(plan.of_rows(torch.tensor([1, 1], device=DEVICE)).kept, expected.kept[[1, 1]])


@every_shape
def test_similarity_pruning(grid, cell, c, dtype):
    x, removed = tokens(grid, c, dtype), (grid.n - cell_count(grid, cell)) * 2 // 3
    row, _ = keys()
    noise = random_normal(mix(row, 2**40 + 1, 5), grid.n)
    same(
        kernels.similar(x, grid, cell, removed, row, 2**40 + 1, 5, 0.3, 1.5),
        similarity_pruning(x, noise, grid, cell, removed, 0.3, 1.5),
    )


@every_shape
def test_block_merging(grid, cell, c, dtype):
    for aggregate in ("max", "sum", "mean"):
        x, count = tokens(grid, c, dtype, "ties" if aggregate == "max" else "smooth"), cell_count(grid, cell) // 2
        expected = block_merging(laplacian_l1(x, grid), grid, cell, count, aggregate)
        plan = same(kernels.blocks(x, grid, cell, count, aggregate), expected)
        torch.testing.assert_close(plan.merge(x), expected.merge(x))


@every_shape
def test_keys(grid, cell, c, dtype, monkeypatch):
    x = tokens(grid, c, dtype)
    alphas = torch.tensor([0.8, 1.2], device=DEVICE)
    factor = 3 if c == 80 else 2
    calls = [
        lambda: downsample_nearest(x, grid, factor),
        lambda: downsample_average(x, grid, factor),
        lambda: interextrapolate(x, grid, factor, 0.9),
        lambda: interextrapolate(x, grid, factor, alphas),
    ]
    by_kernels = [call() for call in calls]
    selected = [kernels.frequency(x, grid, grid.n // 3, keep) for keep in ("high", "low")]
    monkeypatch.setenv("BIGAIN_KERNELS", "torch")
    for result, call in zip(by_kernels, calls, strict=True):
        # The order of sums differs, and in half precision the average is rounded before it is blended.
        torch.testing.assert_close(result, call(), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    for result, keep in zip(selected, ("high", "low"), strict=True):
        assert torch.equal(result, frequency_selection(x, laplacian_l1(x, grid), grid.n // 3, keep))


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # of the interpreter
def test_zero_tokens_and_nan():
    grid, cell, removed = Grid(4, 4), Cell(2, 2), 7
    x = tokens(grid, 16, torch.float32)
    x[0, 3:6] = 0
    x[1, 6] = torch.nan
    destination = first_destinations(grid, cell, DEVICE)
    same(
        kernels.bipartite(x, grid, cell, removed, "first", None, None, None, 0, 0),
        bipartite_matching(x, destination, removed),
    )
    x[1, 5] = torch.inf
    same(
        kernels.similar(x, grid, cell, removed, keys()[0], 1, 2, 0.0, 1.0),
        similarity_pruning(x, torch.zeros(2, 16, device=DEVICE), grid, cell, removed, 0.0, 1.0),
    )


def test_a_plan_does_not_depend_on_its_neighbours():
    grid, cell = Grid(4, 4), Cell(2, 2)
    x, keys = draw(2, grid.n, 16).to(DEVICE), torch.arange(2, device=DEVICE)
    for plan in (
        lambda rows: kernels.bipartite(x[rows], grid, cell, 9, "flattest", None, None, None, 0, 0),
        lambda rows: kernels.similar(x[rows], grid, cell, 9, keys[rows], 0, 0, 0.1, 1.0),
    ):
        assert torch.equal(plan(slice(None))[1:2, :3], plan(slice(1, 2))[:, :3])


@pytest.mark.parametrize(
    "compressor",
    [
        ToMe(ratio=0.5, destination="redrawn"),
        LGTM(ratio=0.5, score=l2_norm, mode="prune"),
        CAM(LGTM(ratio=0.7, destination="released", modules=["self_attn", "mlp"])),
        ABM(tau=0.5),
        SiTo(ratio=0.6),
        IEKVD(factor=2, alpha=Linear(0.8, 1.2)),
        FrequencyKV(ratio=0.5, keep="low"),
    ],
    ids=lambda compressor: type(compressor).__name__,
)
def test_in_a_network(compressor, monkeypatch):
    blocks = [0, 1] if isinstance(compressor, CAM) else [0]
    compressor.where = getattr(compressor, "inner", compressor).where = Where(blocks=blocks)
    model, given = fresh("dit").to(DEVICE), {name: value.to(DEVICE) for name, value in inputs("dit", 2).items()}
    with compressor.applied_to(model):
        by_kernels = forward(model, given)
        monkeypatch.setenv("BIGAIN_KERNELS", "torch")
        by_torch = forward(model, given)
    torch.testing.assert_close(by_kernels, by_torch, rtol=1e-4, atol=1e-4)
    assert dispatch.kernels_note().startswith("triton")


def test_gradients_and_unknown_types_go_to_torch(monkeypatch):
    grid = Grid(4, 4)
    monkeypatch.setattr(dispatch, "_kernels_used", set())
    monkeypatch.setattr(dispatch, "_torch_reasons", set())
    x = tokens(grid, 8, torch.float32).requires_grad_()
    downsample_nearest(x, grid, 2).sum().backward()
    assert x.grad.count_nonzero() == 2 * 4 * 8
    downsample_average(x.detach().double(), grid, 2)
    assert dispatch.kernels_note() == "torch; torch for float64, gradients"
    downsample_average(x.detach(), grid, 2)
    assert dispatch.kernels_note() == "triton; torch for float64, gradients"


@pytest.mark.parametrize(
    ("compressor", "reason"),
    [
        (ABM(tau=0.5, score=l2_norm), "other scores, aggregates and quantiles of ABM"),
        (ABM(ratio=0.5, aggregate="std"), "other scores, aggregates and quantiles of ABM"),
        (ABM(tau=0.8, quantile_of="tokens"), "other scores, aggregates and quantiles of ABM"),
        (LGTM(ratio=0.5, source_quantile=0.8), "gated sources"),
        (IEKVD(factor=2, aligned=True), "aligned windows"),
        (AveragePool(factor=2, aligned=True), "aligned windows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_kernel_does_goes_to_torch(compressor, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "_kernels_used", set())
    monkeypatch.setattr(dispatch, "_torch_reasons", set())
    compressor.where = Where(blocks=[0])
    model, given = fresh("dit").to(DEVICE), {name: value.to(DEVICE) for name, value in inputs("dit").items()}
    with compressor.applied_to(model):
        with_kernels = forward(model, given)
        assert dispatch.kernels_note() == f"torch; torch for {reason}"
        monkeypatch.setenv("BIGAIN_KERNELS", "torch")
        assert torch.equal(with_kernels, forward(model, given))


def test_kernels_match_and_torch_keeps_norms(monkeypatch):
    monkeypatch.setattr(dispatch, "_torch_reasons", set())
    x = tokens(Grid(4, 6), 64, torch.float32)
    tables = kernels.bipartite(x, Grid(4, 6), Cell(2, 2), 9, "first", None, None, None, 0, 0)
    expected = bipartite_matching(x, first_destinations(Grid(4, 6), Cell(2, 2), DEVICE), 9, "mlerp")
    assert torch.equal(same(tables, expected).merge(x), expected.merge(x))
    assert dispatch.kernels_note() == "triton; torch for norms of mode mlerp"


def test_the_switch_is_checked(monkeypatch):
    x = torch.zeros(1, 4, 8)
    monkeypatch.setenv("BIGAIN_KERNELS", "cuda")
    with pytest.raises(InputError, match="BIGAIN_KERNELS must be auto, torch or triton, not 'cuda'"):
        dispatch.kernels_serve(x)
    monkeypatch.setenv("BIGAIN_KERNELS", "auto")
    assert not dispatch.kernels_serve(x)


def test_one_graph(monkeypatch):
    """Compiled code calls the kernels as operators of torch."""
    grid, cell = Grid(4, 4), Cell(2, 2)
    x = tokens(grid, 16, torch.float32)

    def shorten(x):
        tables = kernels.bipartite(x, grid, cell, 8, "flattest", None, None, None, 0, 0)
        plan = kernels.KernelPlan(tables, 8, mode="mean")
        return plan.unmerge(plan.merge(x)) + downsample_nearest(x, grid, 2).mean()

    whole = torch.compile(shorten, fullgraph=True, backend="eager")
    assert torch.equal(whole(x), shorten(x))


def test_tiles_of_many_destinations():
    """Half precision takes larger tiles from 129 destinations on."""
    grid, cell = Grid(24, 24), Cell(2, 2)
    x = tokens(grid, 64, torch.float16, "ties")
    tables = kernels.bipartite(x, grid, cell, 300, "first", None, None, None, 0, 0)
    same(tables, bipartite_matching(x, first_destinations(grid, cell, DEVICE), 300))


@pytest.mark.slow
def test_all_kernels_compile():
    """The interpreter runs what the compiler refuses."""
    program, environment = Path(__file__).with_name("compile_kernels.py"), dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    finished = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=600)
    assert finished.stdout == "compiled 10 kernels\n", finished.stderr[-2000:]


def test_arguments_of_one_row_count_for_all():
    """Kernels read by address: neither expanded nor strided tensors may mislead them."""
    grid, cell = Grid(4, 4), Cell(2, 2)
    x, row = tokens(grid, 16, torch.float32), torch.tensor([5], device=DEVICE)
    first = first_destinations(grid, cell, DEVICE)
    calls = [("drawn", None, keys) for keys in (row.expand(2), row.repeat(2))]
    calls += [("given", destinations, None) for destinations in (first, first.repeat(2, 1))]
    plans = [kernels.bipartite(x, grid, cell, 7, *call, None, 3, 1)[:, :3] for call in calls]
    assert torch.equal(plans[0], plans[1])
    assert torch.equal(plans[2], plans[3])
    alpha = torch.tensor([0.8], device=DEVICE)
    blends = [interextrapolate(x, grid, 2, weight) for weight in (alpha, alpha.expand(2), alpha[0], alpha.repeat(2))]
    assert all(torch.equal(blend, blends[0]) for blend in blends)


def test_shapes_are_checked_before_addresses():
    grid, cell = Grid(4, 4), Cell(2, 2)
    x = tokens(grid, 16, torch.float32)
    with pytest.raises(ValueError, match="do not fill a 5x4 grid"):
        kernels.blocks(x, Grid(5, 4), cell, 2, "max")
    plan = kernels.KernelPlan(kernels.blocks(x, grid, cell, 2, "max"), 10, mode="mean")
    with pytest.raises(ValueError, match="the plan is for 2 x 16 tokens"):
        plan.merge(x[:, :12])


def test_compiled_blocks_of_two_sizes():
    whole = torch.compile(lambda x, grid: downsample_nearest(x, grid, 2), fullgraph=True, backend="eager")
    for grid in (Grid(4, 4), Grid(6, 6), Grid(8, 4)):
        x = tokens(grid, 8, torch.float32)
        assert torch.equal(whole(x, grid), downsample_nearest(x, grid, 2))


def test_destinations_of_a_subclass_are_used(monkeypatch):
    class Last(ToMe):
        def destinations(self, x, site, context):
            return super().destinations(x, site, context).flip(0)

    monkeypatch.setattr(dispatch, "_torch_reasons", set())
    model, given = fresh("dit").to(DEVICE), {name: value.to(DEVICE) for name, value in inputs("dit").items()}
    with Last(ratio=0.5, where=Where(blocks=[0])).applied_to(model):
        by_kernels = forward(model, given)
        assert dispatch.kernels_note() == "triton; torch for destinations of Last"
        monkeypatch.setenv("BIGAIN_KERNELS", "torch")
        torch.testing.assert_close(by_kernels, forward(model, given), rtol=1e-4, atol=1e-4)
