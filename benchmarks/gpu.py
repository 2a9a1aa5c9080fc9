"""Operators by stage, whole networks and the embedded demo on one GPU, eager and in CUDA graphs, in about four minutes.

    python -m benchmarks --gpu                      # the same as python benchmarks/gpu.py
    python benchmarks/gpu.py --only operators,sd2   # of operators, sd2, dit, graph
    python benchmarks/gpu.py --quick                # tiny sizes, also on a CPU: proves the script, not its times

Every section prints Markdown and writes it to `gpu_<section>.md` among the results of this device. What fails is noted
in its place and the rest goes on; a section that runs out of time keeps what it has. Before the first section, several
processes compile the kernels into Triton's cache on disk.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rounds import spread_text
from run_all import HERE, heading, slug
from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.commands.bench.limit import free_plan
from bigain.commands.bench.measure import Entrant, enter, race
from bigain.commands.bench.subject import Subject
from bigain.commands.flops.model import CountedModel
from bigain.commands.main import main as bigain
from bigain.compressors import ABM, CAM, IEKVD, LGTM, AveragePool, Compressor, FrequencyKV, SiTo, ToDo, ToMe
from bigain.compressors.kv import KVDownsampler
from bigain.compressors.merging import TokenMerger
from bigain.compressors.where import Where
from bigain.report.tables import Table
from bigain.tokens.dispatch import kernels_note

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SWITCH = "BIGAIN_KERNELS"
# Most seconds of each section.
SECONDS = {"operators": 75, "sd2": 90, "dit": 90, "graph": 60}
# Processes that compile the kernels, and the seconds that they may take.
WARMERS, WARMING = 16, 100
# Kernels that are listed of each method.
LISTED = 10
Run = Callable[[], Any]


class OutOfTime(BaseException):
    """A section took too long; not an Exception, which would count as the failure of one entry."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        operators: Rows, side of the token map, channels and dtype.
        models: Model, dtype and sites of the sections sd2 and dit.
        batches: Rows of all methods; of some methods.
        rounds: Of whole networks.
        images: Of the demo.
        repetitions: Milliseconds of repetitions of an operator.
    """

    operators: Sequence[tuple[int, int, int, torch.dtype]]
    models: dict[str, tuple[str, torch.dtype, Where]]
    batches: tuple[int, Sequence[int]]
    rounds: int
    images: int
    repetitions: int


FULL = Sizes(
    operators=[
        (16, 64, 320, torch.float16),
        (2, 64, 320, torch.float16),
        (32, 64, 320, torch.float16),
        (16, 32, 1152, torch.float16),
    ],
    models={
        "sd2": ("sd2", torch.float16, Where()),
        "dit": ("dit_xl_2_512", torch.bfloat16, Where(blocks="released")),
    },
    batches=(16, (2, 64)),
    rounds=9,
    images=128,
    repetitions=20,
)
QUICK = Sizes(
    operators=[(2, 8, 64, torch.float32)],
    models={"sd2": ("shapes_unet", torch.float32, Where()), "dit": ("shapes_dit", torch.bfloat16, Where())},
    batches=(2, (1,)),
    rounds=2,
    images=2,
    repetitions=1,
)


def compressors(where: Where = Where()) -> dict[str, Compressor]:  # noqa: B008 - frozen
    return {
        "ToMe 0.7": ToMe(ratio=0.7, where=where),
        "LGTM 0.7": LGTM(ratio=0.7, where=where),
        "LGTM 0.5": LGTM(ratio=0.5, where=where),
        "CAM(LGTM 0.7)": CAM(LGTM(ratio=0.7, where=where)),
        "ABM 0.7": ABM(ratio=0.7, where=where),
        "SiTo 0.7": SiTo(ratio=0.7, where=where),
        "ToDo 2": ToDo(factor=2, where=where),
        "IE-KVD 2": IEKVD(factor=2, where=where),
        "AveragePool 2": AveragePool(factor=2, where=where),
    }


# Methods whose own work is measured at one site.
OPERATORS = {name: method for name, method in compressors().items() if name not in ("LGTM 0.5", "CAM(LGTM 0.7)")}
OPERATORS["FrequencyKV 0.75"] = FrequencyKV(ratio=0.75, keep="high")
# Methods in whole networks at the other batches.
SOME_METHODS = ("LGTM 0.7", "IE-KVD 2")


class Page:
    """The Markdown of one section, printed and written as it grows."""

    def __init__(self, section: str, title: str, folder: Path) -> None:
        self.file = folder / f"gpu_{section}.md"
        self._text = heading(title, ["benchmarks/gpu.py", *sys.argv[1:]])
        print(f"\n# {title}\n", flush=True)

    def add(self, text: str) -> None:
        print(text, end="\n\n", flush=True)
        self._text += text + "\n\n"
        self.file.write_text(self._text.rstrip() + "\n", encoding="utf-8")


def reason(error: BaseException) -> str:
    """One line; a capture that fails raises what invalidated it first."""
    while isinstance(error.__context__, Exception) and "capture" in str(error):
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    previous = os.environ.get(SWITCH)
    os.environ[SWITCH] = mode
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if previous is not None:
            os.environ[SWITCH] = previous


def captured(run: Run, pool: Any = None) -> Run:
    """Return a replay of a CUDA graph of `run`; it returns the same memory every time."""
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            output = run()
    except Exception:
        # A capture that fails does not leave its stream.
        torch.cuda.set_stream(current)
        torch.cuda.synchronize()
        raise

    def replay() -> Any:
        graph.replay()
        return output

    return replay


# ---- operators


def tokens(b: int, side: int, c: int, dtype: torch.dtype) -> Tensor:
    """A smooth map with noise, as features are. `(b, side * side, c)`."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    rough = torch.randn(b, c, side // 4, side // 4, generator=draw, device=DEVICE)
    x = nn.functional.interpolate(rough, (side, side), mode="bilinear").flatten(2).transpose(1, 2)
    return (x + 0.2 * torch.randn(b, side * side, c, generator=draw, device=DEVICE)).to(dtype).contiguous()


def milliseconds(run: Run, repetitions: int) -> float:
    """Median of one call; on a GPU with an empty L2 cache."""
    if DEVICE.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=5, rep=repetitions, return_mode="median"))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def stages(method: Compressor, x: Tensor, side: int) -> dict[str, Run]:
    """Return the stages of a method at a site of stride 1, and the whole."""
    site = Site("site", 0, None, 1, nn.Identity())
    latents = torch.zeros(len(x), 1, side, side, device=DEVICE)
    context = ForwardContext.of(latents, torch.arange(len(x), device=DEVICE), None)
    if isinstance(method, KVDownsampler):
        return {"whole": lambda: method.downsample(x, site, context)}
    assert isinstance(method, TokenMerger)
    plan = method.plan(x, site, context)
    merged = plan.merge(x)

    def whole() -> tuple[Any, ...]:
        decided = method.plan(x, site, context)
        return decided, decided.unmerge(decided.merge(x))

    return {
        "plan": lambda: method.plan(x, site, context),
        "merge": lambda: plan.merge(x),
        "unmerge": lambda: plan.unmerge(merged),
        "whole": whole,
    }


def time_of(run: Run, repetitions: int) -> str:
    try:
        return f"{milliseconds(run, repetitions):.3f}"
    except Exception as error:  # noqa: BLE001 - the others are still measured
        return reason(error)


def in_graph(run: Run, repetitions: int) -> str:
    if DEVICE.type != "cuda":
        return ""
    try:
        return time_of(captured(run), repetitions)
    except Exception as error:  # noqa: BLE001 - such as a copy from the host
        return reason(error)


def profiled(run: Run) -> str:
    """Return microseconds by kernel in one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    calls, on_gpu = 5, DEVICE.type == "cuda"
    run()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    events = []
    for event in profiler.key_averages():
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if us > 0 and not event.key.startswith(("cuda", "Activity Buffer")):
            events.append((us / calls, event.count / calls, event.key))
    events.sort(reverse=True)
    total = f"{sum(us for us, *_ in events):.1f} us in {sum(count for _, count, _ in events):.0f} kernels: "
    listed = (f"`{key[:70]}`{f' x{count:.0f}' if count > 1 else ''} {us:.1f}" for us, count, key in events[:LISTED])
    return total + ", ".join(listed)


@torch.inference_mode()
def operators(page: Page, sizes: Sizes) -> None:
    page.add(
        "Milliseconds, medians, with an empty cache before each call. `whole`: plan, merge and unmerge one after the "
        "other; for keys, their downsampling. `torch`: `BIGAIN_KERNELS=torch`."
    )
    for b, side, c, dtype in sizes.operators:
        page.add(f"## {b} x {side * side} x {c}, {str(dtype).removeprefix('torch.')}")
        x, rows, kernel_times = tokens(b, side, c, dtype), [], []
        heads = c // (72 if c == 1152 else 64)
        q = torch.randn(b, heads, side * side, c // heads, device=DEVICE, dtype=dtype)
        kept = q[:, :, : round(0.3 * side * side)].contiguous()
        references = {
            "one attention, all tokens": (q, q),
            "one attention, 0.3 of the tokens": (kept, kept),
            "one attention, 0.25 of the keys": (q, q[:, :, ::4].contiguous()),
        }
        for name, (queries, keys) in references.items():
            run = partial(nn.functional.scaled_dot_product_attention, queries, keys, keys)
            rows.append([name, "", "", "", "", time_of(run, sizes.repetitions), in_graph(run, sizes.repetitions)])
        free = free_plan(x, round(0.3 * side * side))
        merge_unmerge = partial(lambda plan, x: plan.unmerge(plan.merge(x)), free, x)
        copies = (partial(free.merge, x), partial(free.unmerge, free.merge(x)), merge_unmerge)
        times = [time_of(run, sizes.repetitions) for run in copies]
        rows.append(["limit: every k-th token", "", "", *times, in_graph(merge_unmerge, sizes.repetitions)])
        for name, mode in itertools.product(OPERATORS, ("auto", "torch")):
            with kernels(mode):
                try:
                    runs = stages(OPERATORS[name], x, side)
                    times = [
                        time_of(runs[stage], sizes.repetitions) if stage in runs else ""
                        for stage in ("plan", "merge", "unmerge", "whole")
                    ]
                    rows.append([name, mode, *times, in_graph(runs["whole"], sizes.repetitions)])
                    if mode == "auto":
                        kernel_times.append(f"- {name}: {profiled(runs['whole'])}")
                except Exception as error:  # noqa: BLE001 - the others are still measured
                    rows.append([name, mode, "", "", "", reason(error), ""])
        head = ("method", "kernels", "plan", "merge", "unmerge", "whole", "whole in a graph")
        page.add(Table(head, rows, "llrrrrr").markdown())
        page.add("By kernel:\n\n" + "\n".join(kernel_times))
    page.add(f"`auto` was: {kernels_note()}")


def warm(part: int, parts: int, sizes: Sizes) -> None:
    """Compile the kernels of some methods at all sizes, for other processes."""
    shapes = {(b, side, c, dtype) for b, side, c, dtype in sizes.operators}
    if sizes is FULL:
        # Shapes of the networks.
        for b in (16, 2, 64):
            shapes |= {(b, 64, 320, torch.float16), (b, 32, 1152, torch.bfloat16)}
    kinds = sorted({(c, str(dtype)) for _, _, c, dtype in shapes})
    jobs = list(itertools.product(kinds, OPERATORS))[part::parts]
    with torch.inference_mode():
        for kind, name in jobs:
            for b, side, c, dtype in shapes:
                if kind == (c, str(dtype)):
                    try:
                        stages(OPERATORS[name], tokens(b, side, c, dtype), side)["whole"]()
                    except Exception as error:  # noqa: BLE001 - it will show where it is measured
                        print(f"warm-up: {name} at {b} x {side * side} x {c}: {reason(error)}", file=sys.stderr)


def warm_up(quick: bool) -> None:
    """Compile kernels in several processes at a time."""
    began = time.perf_counter()
    parts = 1 if quick else min(WARMERS, os.cpu_count() or 1)
    command = [sys.executable, __file__, *(["--quick"] if quick else []), "--warm"]
    for process in [subprocess.Popen([*command, f"{part}/{parts}"]) for part in range(parts)]:
        try:
            process.wait(max(1, began + WARMING - time.perf_counter()))
        except subprocess.TimeoutExpired:
            print("the warm-up took too long and was ended", flush=True)
            process.kill()


# ---- whole networks


class Replayed(Subject):
    """A subject whose forward replays a CUDA graph."""

    @classmethod
    def of_subject(cls, subject: Subject, pool: Any) -> Replayed:
        fields = (subject.backbone, subject.weights, subject.noisy, subject.timesteps, subject.condition)
        graph = cls(*fields)
        object.__setattr__(graph, "forward", captured(subject.forward, pool))
        return graph


def of_rows(subject: Subject, rows: int) -> Subject:
    return replace(
        subject,
        noisy=subject.noisy[:rows].contiguous(),
        timesteps=subject.timesteps[:rows].contiguous(),
        condition=subject.condition[:rows].contiguous(),
    )


def with_tomesd(subject: Subject) -> Entrant:
    import tomesd

    tomesd.apply_patch(subject.backbone.denoiser, ratio=0.7)
    return Entrant(subject)


def measurable_entrants(entrants: dict[str, Entrant], page: Page) -> dict[str, Entrant]:
    """Run each once; leave out those that fail or change nothing, with a note."""
    reference, measurable = None, {}
    for name, entrant in entrants.items():
        try:
            output = entrant.subject.forward()
            if reference is None:
                reference = output
            elif not name.startswith("none") and torch.equal(output, reference):
                raise ValueError("its output is that of the network without compression")
            measurable[name] = entrant
        except Exception as error:  # noqa: BLE001 - the others are still measured
            page.add(f"- {name}: not measured: {reason(error)}")
    return measurable


def in_graphs(entrants: dict[str, Entrant], page: Page) -> dict[str, Entrant]:
    """Capture each; all graphs share memory, since only one runs at a time."""
    if DEVICE.type != "cuda":
        return {}
    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for name, entrant in entrants.items():
        try:
            replayed = Entrant(Replayed.of_subject(entrant.subject, pool), entrant.compressor)
            eager, output = entrant.subject.forward(), replayed.subject.forward()
            if not torch.equal(output, eager):
                page.add(f"- {name}: its graph differs from eager by at most {(output - eager).abs().max():.1e}")
            graphs[name] = replayed
        except Exception as error:  # noqa: BLE001 - the others are still measured
            page.add(f"- {name}: no graph: {reason(error)}")
            pool = torch.cuda.graph_pool_handle()
    return graphs


@torch.inference_mode()
def compare(
    page: Page, subject: Subject, methods: dict[str, Compressor], tomesd: bool, rounds: int, seconds: float
) -> None:
    with ExitStack() as undo:
        compressed, limits = enter(subject, list(methods.values()), undo)
        entrants = dict(zip(("none", *methods), compressed, strict=True))
        entrants["none again"] = Entrant(subject.twin())
        for limit in limits:
            names = [name for name in methods if entrants[name].limit is limit]
            entrants[f"limit of {', '.join(names)}"] = limit
        if tomesd:
            try:
                entrants["tomesd 0.7"] = with_tomesd(subject.twin())
            except Exception as error:  # noqa: BLE001 - it may not be installed
                page.add(f"- tomesd: not measured: {reason(error)}")
        entrants = measurable_entrants(entrants, page)
        graphs = in_graphs(entrants, page)
        with redirect_stderr(io.StringIO()):
            race([*entrants.values(), *graphs.values()], rounds, seconds)
        done = len(entrants["none"].seconds)
        page.add(
            f"{len(subject.noisy)} rows, {done} rounds in shuffled order; medians (lowest to highest) of the ratio to "
            "none in the same round, that of graphs to none in a graph."
        )
        rows = [cells(name, entrants, graphs) for name in entrants]
        head = ("method", "ms", "of none", "of the limit, %", "ms in a graph", "of none in a graph", "of the limit, %")
        page.add(Table(head, rows, "lrrrrrr").markdown())
    del entrants, graphs, compressed, limits
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def cells(name: str, entrants: dict[str, Entrant], graphs: dict[str, Entrant]) -> list[str]:
    row = [name]
    for group in (entrants, graphs):
        entrant, limit = group.get(name), entrants[name].limit
        group_limit = next((group[other] for other in group if entrants[other] is limit), None)
        if entrant is None or entrant.error is not None or "none" not in group:
            row += [entrant.error if entrant is not None and entrant.error else "", "", ""]
            continue
        none = group["none"].seconds
        ratios = [a / b for a, b in zip(entrant.seconds, none, strict=True)]
        row += [f"{1e3 * statistics.median(entrant.seconds):.2f}", spread_text(ratios, 3), ""]
        if group_limit is not None and group_limit.error is None:
            possible = statistics.median(a / b for a, b in zip(group_limit.seconds, none, strict=True))
            row[-1] = f"{100 * (1 - statistics.median(ratios)) / (1 - possible):.0f}" if possible < 0.99 else ""
    return row


def network(section: str, page: Page, sizes: Sizes) -> None:
    model, dtype, where = sizes.models[section]
    seconds, (batch, further_rows) = SECONDS[section] / 3, sizes.batches
    subject = Subject.of(CountedModel.of(model, None), max(batch, *further_rows), dtype, DEVICE, False)
    methods = compressors(where)
    page.add(f"{model}, {str(dtype).removeprefix('torch.')}, {subject.weights} weights, {where}")
    compare(page, of_rows(subject, batch), methods, section == "sd2", sizes.rounds, seconds)
    some_methods = {name: methods[name] for name in SOME_METHODS}
    for rows in further_rows:
        try:
            compare(page, of_rows(subject, rows), some_methods, False, sizes.rounds, seconds / 4)
        except Exception as error:  # noqa: BLE001 - such as too little memory for many rows
            page.add(f"- {rows} rows: {reason(error)}")
    page.add(f"kernels: {kernels_note()}")


# ---- the demo


def demo(page: Page, sizes: Sizes) -> None:
    rows = []
    on_gpu, quick = ["--trainer.precision", "bf16-true"], ["--model.trials", "[1]", "--model.keep", "[1]"]
    for config, graph in itertools.product(("demo_lgtm.yaml", "demo_none.yaml"), ("false", "true")):
        with tempfile.TemporaryDirectory() as folder:
            run, log = Path(folder, "run"), io.StringIO()
            options = ["--output", str(run), "--data.images", str(sizes.images), "--inspect", "0"]
            options += on_gpu if DEVICE.type == "cuda" else quick
            options += ["--trainer.enable_progress_bar", "false", "--model.backbone.cuda_graph", graph]
            try:
                with redirect_stdout(log), redirect_stderr(log):
                    status = bigain(["predict", "--config", config, *options])
                results = json.loads(next(run.rglob("results.json")).read_text())
            except StopIteration:
                rows.append([config, graph, f"ended with {status}: {log.getvalue().strip()[-200:]}", "", "", ""])
                continue
            except Exception as error:  # noqa: BLE001 - the others are still measured
                rows.append([config, graph, reason(error), "", "", ""])
                continue
            timing = results["timing"]
            denoiser = timing["denoiser"]
            numbers = (f"{denoiser['seconds']:.3f}", str(denoiser["forwards"]), f"{denoiser['rows_per_second']:.0f}")
            rows.append([config, results["environment"]["cuda_graph"], *numbers, f"{timing['seconds']:.2f}"])
    head = ("configuration", "graphs", "denoiser, s", "forwards", "rows/s", "run, s")
    page.add(f"{sizes.images} images of the embedded demo, 64 rows per forward; forwards of the warm-up do not count.")
    page.add(Table(head, rows, "llrrrr").markdown())


SECTIONS: dict[str, tuple[str, Callable[[Page, Sizes], None]]] = {
    "operators": ("operators by stage on a GPU", operators),
    "sd2": ("a forward of SD 2.0 on a GPU", lambda page, sizes: network("sd2", page, sizes)),
    "dit": ("a forward of DiT-XL/2 at 512 px on a GPU", lambda page, sizes: network("dit", page, sizes)),
    "graph": ("the embedded demo on a GPU", demo),
}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes, names = QUICK if args.quick else FULL, args.only.split(",")
    if unknown := set(names) - {*SECTIONS}:
        parser.error(f"no section {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    if args.warm:
        warm(*map(int, args.warm.split("/")), sizes)
        return 0
    folder = args.output or HERE / "results" / slug(args.quick)
    folder.mkdir(parents=True, exist_ok=True)
    warm_up(args.quick)
    print(f"{DEVICE}, warm-up {time.perf_counter() - began:.0f} s", flush=True)
    failed = 0
    for name in names:
        (title, measure), start = SECTIONS[name], time.perf_counter()
        page = Page(name, title, folder)
        try:
            with at_most(SECONDS[name]):
                measure(page, sizes)
        except OutOfTime:
            failed += 1
            page.add(f"Out of time after {SECONDS[name]} s: the rest is missing.")
        except Exception as error:  # noqa: BLE001 - the other sections still run
            failed += 1
            page.add(f"Failed: {reason(error)}")
        page.add(f"{time.perf_counter() - start:.0f} s")
    print(f"{time.perf_counter() - began:.0f} s in all; {folder}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
