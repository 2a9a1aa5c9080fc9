"""Independent references of the token tests: cells, and what a plan of copies does, by loops."""

import math

import torch


def tokens(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cells(grid, cell):
    """Token ids of every complete cell, row-major between and inside cells."""
    return [
        [(i * cell.h + dy) * grid.w + j * cell.w + dx for dy in range(cell.h) for dx in range(cell.w)]
        for i in range(grid.h // cell.h)
        for j in range(grid.w // cell.w)
    ]


def unit(v):
    length = max(math.sqrt(sum(a * a for a in v)), 1e-12)
    return [a / length for a in v]


def merged_by_loop(x, merged, mode):
    """`{token: row}` of one merged sequence."""
    rows = {}
    for t in sorted(set(range(len(x))) - set(merged)):
        group = [x[t]] + [x[s] for s, d in merged.items() if d == t and mode != "prune"]
        rows[t] = [sum(column) / len(group) for column in zip(*group, strict=True)]
        if mode == "mlerp":
            rows[t] = [value * max(map(math.hypot, *zip(*group, strict=True))) for value in unit(rows[t])]
    return rows


def check_plan(plan, x, merged, mode="mean"):
    """Parity on sets of indices, merged rows, and restored outputs. `merged`: `{removed: leader}` per row."""
    y = plan.merge(x)
    outputs = tokens(*y.shape, seed=99)
    restored, home = plan.unmerge(y), plan.unmerge(outputs)
    assert plan.mode == mode
    assert y.shape == plan.kept.shape + x.shape[2:]
    assert restored.shape == home.shape == x.shape
    for b, pairs in enumerate(merged):
        kept = plan.kept[b].tolist()
        assert kept == sorted(set(range(x.shape[1])) - set(pairs))
        assert len(plan.removed[b]) == len(pairs)
        assert {s: kept[k] for s, k in zip(plan.removed[b].tolist(), plan.target[b].tolist(), strict=True)} == pairs
        rows = merged_by_loop(x[b].double().tolist(), pairs, mode)
        expected = torch.tensor([rows[t] for t in kept], dtype=x.dtype)
        torch.testing.assert_close(y[b], expected, rtol=1e-5, atol=0 if mode == "prune" else 1e-6)
        assert torch.equal(restored[b], y[b, [kept.index(pairs.get(t, t)) for t in range(x.shape[1])]])
        assert torch.equal(home[b], outputs[b, [kept.index(pairs.get(t, t)) for t in range(x.shape[1])]])
