"""Plan, merge and unmerge at the shapes of SD 2.0's first level and of the embedded models, against tomesd.

    pip install -e ".[dev]"                       # brings tomesd
    python benchmarks/operators.py
    python benchmarks/operators.py --quick        # embedded shapes only, 3 repetitions

Each repetition runs every candidate once, so that drift of a noisy machine hits all alike: what counts are medians of
the ratios within a repetition. Before anything is timed, merged and restored tokens are compared with tomesd's: in
float32 they may differ only where two destinations are equally near within rounding, and the tokens are counted; in
half precision tomesd decides by rounded similarities, so our plan is compared with that of float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import tomesd
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from bigain.tokens.block_merging import block_merging
from bigain.tokens.destinations import cell_destinations, first_destinations
from bigain.tokens.downsampling import interextrapolate
from bigain.tokens.grid import Cell, Grid
from bigain.tokens.matching import bipartite_matching
from bigain.tokens.precision import products
from bigain.tokens.scores import laplacian_l1

CELL = Cell(2, 2)
SHAPES = (
    ("SD 2.0, first level", 2, Grid(64, 64), 320, 5),
    ("SD 2.0, first level", 8, Grid(64, 64), 320, 5),
    ("embedded U-Net, first level", 8, Grid(32, 32), 32, 1),
    ("embedded DiT", 8, Grid(16, 16), 128, 2),
)
PEER = "tomesd"
Task = Callable[[], object]


def tome(x: Tensor, grid: Grid, removed: int) -> Tensor:
    plan = bipartite_matching(x, first_destinations(grid, CELL, x.device), removed)
    return plan.unmerge(plan.merge(x))


def published(x: Tensor, grid: Grid, removed: int) -> Tensor:
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(x, grid.w, grid.h, 2, 2, removed, no_rand=True)
    return unmerge(merge(x))


def candidates(x: Tensor, grid: Grid, attention: Attention, removed: int) -> dict[str, Task]:
    def lgtm() -> Tensor:
        plan = bipartite_matching(x, cell_destinations(laplacian_l1(x, grid), grid, CELL), removed)
        return plan.unmerge(plan.merge(x))

    def abm() -> Tensor:
        plan = block_merging(laplacian_l1(x, grid), grid, CELL, removed // 3)
        return plan.unmerge(plan.merge(x))

    sources, targets = x[:, grid.n // 4 :], x[:, : grid.n // 4].transpose(1, 2)
    return {
        PEER: lambda: published(x, grid, removed),
        "ToMe": lambda: tome(x, grid, removed),
        "LGTM": lgtm,
        "ABM": abm,
        "IE-KVD 2": lambda: interextrapolate(x, grid, 2, 0.9),
        "the similarity product alone": lambda: products(sources, targets),
        "one self-attention, all tokens": lambda: attention(x),
    }


def check(x: Tensor, grid: Grid, removed: int) -> str:
    """Whether our output is that of the reference; two destinations may be equally near within rounding."""
    destination = first_destinations(grid, CELL, x.device)
    if x.dtype == torch.float32:
        other = (tome(x, grid, removed) - published(x, grid, removed)).abs().amax(2) > 1e-5
        what = "differ from tomesd's"
    else:
        ours, wide = (bipartite_matching(y, destination, removed) for y in (x, x.float()))
        other = ours.restore != wide.restore
        what = "read back another row than by the float32 plan"
    count = int(other.sum())
    assert count <= 0.001 * other.numel(), count
    return f"{count} of {other.numel()} tokens {what}"


@torch.inference_mode()
def measure(tasks: dict[str, Task], repetitions: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in tasks}
    order = list(tasks)
    for repetition in range(repetitions + 1):
        order = order[1:] + order[:1]
        for name in order:
            start = time.perf_counter()
            tasks[name]()
            if repetition:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="embedded shapes only, 3 repetitions")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds, median (least to most); ")
    print("x tomesd: how many times faster, median of the ratios within a repetition (least to most)\n")
    for name, b, grid, c, heads in SHAPES[2 if args.quick else 0 :]:
        for dtype in (torch.float32, torch.bfloat16):
            for ratio in (0.5, 0.7):
                removed = int(grid.n * ratio)
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(b, grid.n, c, generator=generator).to(dtype)
                attention = Attention(c, heads=heads, dim_head=c // heads).to(dtype).eval()
                print(f"{name}: {b} x {grid.n} x {c}, {dtype}, ratio {ratio}; {check(x, grid, removed)}")
                tell(measure(candidates(x, grid, attention, removed), 3 if args.quick else 9))


def tell(times: dict[str, list[float]]) -> None:
    for task, values in times.items():
        ratios = [peer / value for peer, value in zip(times[PEER], values, strict=True)]
        low, high, median = min(values) * 1e3, max(values) * 1e3, statistics.median(values) * 1e3
        factor = f"{statistics.median(ratios):6.2f} x tomesd ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {task:32} {median:8.2f} ({low:.2f} to {high:.2f}) {factor}")
    print(flush=True)


if __name__ == "__main__":
    main()
