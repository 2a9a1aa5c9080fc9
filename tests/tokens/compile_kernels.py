"""Compile all kernels for an H100, without a GPU; run by test_kernels.py in a process that does not interpret them."""

import itertools

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigain.tokens.grid import Cell, Grid
from bigain.tokens.kernels import plans

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
compiled = set()


def compile_only(kernel, programs, arguments, sizes):
    if (kernel, sizes) in compiled:
        return
    compiled.add((kernel, sizes))
    values, options = iter(arguments), dict(sizes)
    types, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = options.pop(parameter.name) if parameter.is_constexpr else next(values)
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[place,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name], attributes[place,] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            types[parameter.name] = parameter.annotation_type or ("fp32" if isinstance(value, float) else "i32")
    source = ASTSource(kernel, types, constants, attributes)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def main():
    plans._launch = compile_only
    cell, keys = Cell(2, 2), torch.empty(2, dtype=torch.int64)
    for side, c, dtype in ((64, 320, torch.float16), (16, 128, torch.float32)):
        grid = Grid(side, side)
        x, removed = torch.empty(2, grid.n, c, dtype=dtype), grid.n // 2
        given = torch.empty(1, grid.n // 4, dtype=torch.int64)
        for rule, classes in itertools.product(("flattest", "released", "first", "drawn", "given"), (None, keys)):
            tables = plans.bipartite(x, grid, cell, removed, rule, given, keys, classes, 2**40, 1)
        plans.similar(x, grid, cell, removed, keys, 2**40, 1, 0.1, 1.0)
        for aggregate in ("max", "sum"):
            plans.blocks(x, grid, cell, 8, aggregate)
        for mean in (True, False):
            plans.unmerge(plans.merge(x, tables, removed, mean), tables)
        plans.frequency(x, grid, 8, "high")
        for kind in ("nearest", "average", "blend"):
            plans.downsample(x, grid, 3, kind)
    print(f"compiled {len({kernel for kernel, _ in compiled})} kernels")


if __name__ == "__main__":
    main()
