"""Plan, merge and unmerge at the shapes of SD 2.0's first level and of the embedded models, against tomesd.

    pip install -e ".[dev]"                       # brings tomesd
    python benchmarks/operators.py
    python benchmarks/operators.py --quick        # embedded shapes only, 3 repetitions

Each round runs every candidate once, so that the drift of a noisy machine affects all of them; the results are medians
of the ratios within a round. Before timing, merged and restored tokens are compared with tomesd's: in float32
they may differ only where two destinations are equally near up to rounding, and these tokens are counted; in half
precision tomesd decides by rounded similarities, so our plan is compared with that of float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import tomesd
import torch
from diffusers.models.attention_processor import Attention
from rounds import rounds, spread_text
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
    """Compare our output with the reference; two destinations may be equally near up to rounding."""
    destination = first_destinations(grid, CELL, x.device)
    if x.dtype == torch.float32:
        differs = (tome(x, grid, removed) - published(x, grid, removed)).abs().amax(2) > 1e-5
        difference = "differ from tomesd's"
    else:
        ours, float32 = (bipartite_matching(y, destination, removed) for y in (x, x.float()))
        differs = ours.restore != float32.restore
        difference = "read a different row than with the float32 plan"
    count = int(differs.sum())
    assert count <= 0.001 * differs.numel(), count
    return f"{count} of {differs.numel()} tokens {difference}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="embedded shapes only, 3 repetitions")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds, median (lowest to highest);")
    print("x tomesd: times faster, median of the ratios within a round (lowest to highest)\n")
    for name, b, grid, c, heads in SHAPES[2 if args.quick else 0 :]:
        for dtype in (torch.float32, torch.bfloat16):
            for ratio in (0.5, 0.7):
                removed = int(grid.n * ratio)
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(b, grid.n, c, generator=generator).to(dtype)
                attention = Attention(c, heads=heads, dim_head=c // heads).to(dtype).eval()
                print(f"{name}: {b} x {grid.n} x {c}, {dtype}, ratio {ratio}; {check(x, grid, removed)}\n")
                with torch.inference_mode():
                    show(rounds(candidates(x, grid, attention, removed), 3 if args.quick else 9))


def show(times: dict[str, list[float]]) -> None:
    for task, values in times.items():
        ratios = [peer / value for peer, value in zip(times[PEER], values, strict=True)]
        print(f"    {task:32} {spread_text(values, 2, 1e3)}; {spread_text(ratios, 2)} x tomesd")
    print(flush=True)


if __name__ == "__main__":
    main()
