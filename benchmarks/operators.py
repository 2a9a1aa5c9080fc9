"""Does merging pay? Planning, merging and unmerging against the attention they save, and against tomesd.

    pip install -e ".[dev]"                       # brings tomesd
    python benchmarks/operators.py                # shapes of SD 2.0 first level and of the embedded models
    python benchmarks/operators.py --quick

Each repetition times the candidates in turn, so that drift of a noisy machine hits all alike; medians are printed.
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
from bigain.tokens.matching import MergePlan, bipartite_matching
from bigain.tokens.scores import laplacian_l1

CELL = Cell(2, 2)
SHAPES = {
    "SD 2.0, first level": (2, Grid(64, 64), 320, 5),
    "embedded U-Net, first level": (64, Grid(32, 32), 32, 1),
    "embedded DiT": (64, Grid(16, 16), 128, 2),
}


def candidates(x: Tensor, grid: Grid, attention: Attention, ratio: float) -> dict[str, Callable[[], object]]:
    removed = int(grid.n * ratio)

    def around(plan: MergePlan) -> Tensor:
        return plan.unmerge(plan.merge(x))

    def attend(plan: MergePlan) -> Tensor:
        return plan.unmerge(attention(plan.merge(x)))

    def lgtm() -> MergePlan:
        return bipartite_matching(x, cell_destinations(laplacian_l1(x, grid), grid, CELL), removed)

    def tome() -> MergePlan:
        return bipartite_matching(x, first_destinations(grid, CELL, x.device), removed)

    def abm() -> MergePlan:
        return block_merging(laplacian_l1(x, grid), grid, CELL, removed // 3)

    def published() -> Tensor:
        merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(x, grid.w, grid.h, 2, 2, removed, no_rand=True)
        return unmerge(merge(x))

    return {
        "attention, all tokens": lambda: attention(x),
        "LGTM + attention": lambda: attend(lgtm()),
        "ABM + attention": lambda: attend(abm()),
        "IE-KVD 2 + attention": lambda: attention(x, encoder_hidden_states=interextrapolate(x, grid, 2, 0.9)),
        "LGTM plan, merge, unmerge": lambda: around(lgtm()),
        "ToMe plan, merge, unmerge": lambda: around(tome()),
        "ABM plan, merge, unmerge": lambda: around(abm()),
        "tomesd plan, merge, unmerge": published,
    }


@torch.inference_mode()
def measure(tasks: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repetition:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="embedded shapes only, 3 repetitions")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians and spread in ms\n")
    for name, (b, grid, c, heads) in list(SHAPES.items())[1 if args.quick else 0 :]:
        for dtype in (torch.float32, torch.bfloat16):
            for ratio in (0.5, 0.7):
                torch.manual_seed(0)
                x = torch.randn(b, grid.n, c).to(dtype)
                attention = Attention(c, heads=heads, dim_head=c // heads).to(dtype).eval()
                times = measure(candidates(x, grid, attention, ratio), 3 if args.quick else 7)
                full = times["attention, all tokens"]
                print(f"{name}: {b} x {grid.n} x {c}, {dtype}, ratio {ratio}")
                for task, values in times.items():
                    share = statistics.median(a / b for a, b in zip(values, full, strict=True))
                    low, high = min(values) * 1e3, max(values) * 1e3
                    median = statistics.median(values) * 1e3
                    print(f"  {task:28} {median:9.2f}  ({low:.2f} to {high:.2f})  {share:5.2f} x attention")
                print()


if __name__ == "__main__":
    main()
