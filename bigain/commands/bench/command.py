"""`bigain bench`: arguments, result and output; what imports torch is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from json import dumps
from typing import TYPE_CHECKING, Any, Literal

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.runs.numbers import with_interval

if TYPE_CHECKING:
    from bigain.commands.bench.subject import Subject
    from bigain.compressors import Compressor

# Fewer repetitions are warned about.
_ENOUGH = 5
_HEAD = ("method", "ms", "of none", "promised", "realised", "limit", "of the limit", "own work, ms", "peak MB")


def bench(
    *options: str,
    model: str = "sd2",
    image_size: int | None = None,
    batch: int | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    device: str | None = None,
    threads: int | None = None,
    repetitions: int = 5,
    compile: Literal["none", "whole", "regional"] = "none",
    channels_last: bool = False,
    cuda_graph: bool = False,
    tune: bool = False,
    json: bool = False,
) -> Outcome:
    """Time one forward of a network without compression and with each of several compressors, in turns.

    Reports how much of the saving that FLOPs promise is real: (1 - measured ratio) / (1 - promised ratio), and of the
    saving of the limit, the same number of tokens kept at the same sites by a decision that costs nothing.

    Args:
        *options: --compressor NAME, the import path of a class, or a file; may be given several times, each followed by
            its arguments: --compressor LGTM --compressor.ratio 0.7 --compressor IEKVD --compressor.factor 2. Left out:
            LGTM and ABM at ratio 0.7 and IEKVD at factor 2.
        model: Name of shipped sizes (sd2, dit_xl_2_512, pixart_512, sdxl, sd3_medium, flux_dev), a shipped
            configuration (sd21, shapes_dit, ...), a diffusers folder or a hub id. A folder with weights is loaded;
            otherwise weights are random, and only sizes are downloaded.
        image_size: Side of the images in px; by default what the model was trained on.
        batch: Rows of a forward; 2 if left out. With --tune the fewest, 8 if left out.
        dtype: Of weights and activations.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        threads: Of a CPU; by default torch's.
        repetitions: Measured rounds; in each, every method runs in turn, in changing order.
        compile: whole: the network as one graph; regional: each transformer block separately.
        channels_last: Use this memory format for convolutions.
        cuda_graph: Launch all kernels of a forward together, on a GPU.
        tune: Find the fastest settings instead, with one compressor or, if left out, without compression: rows of a
            forward, memory format, CUDA graphs, compilation. Prints a configuration.
        json: Print one JSON object instead of text; progress goes to stderr.

    Returns:
        Complete if every method could be measured.

    Raises:
        InputError: If an argument cannot work.
    """
    for name, value in {"batch": batch, "threads": threads, "repetitions": repetitions}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if cuda_graph and compile != "none":
        raise InputError(f"--cuda-graph is true and --compile is {compile}; set one of them")
    import torch

    from bigain.commands.bench.measure import compressors_of, measure
    from bigain.commands.bench.subject import Subject, find_device
    from bigain.commands.flops.model import CountedModel
    from bigain.commands.predict import silence_libraries
    from bigain.cost.environment import slow_precision
    from bigain.tokens.dispatch import kernels_note

    silence_libraries()
    compressors, target = [] if tune and not options else compressors_of(options), find_device(device)
    if tune and (len(compressors) > 1 or compile != "none" or channels_last or cuda_graph or json):
        raise InputError("--tune takes one --compressor or none; no --compile, --channels-last, --cuda-graph, --json")
    counted = CountedModel.of(model, image_size)
    # A compressor that cannot work is refused before any weights exist.
    flops = [counted.baseline, *(counted.count([compressor]) for compressor in compressors)]
    if varying := [type(compressor).__name__ for compressor in compressors if len(compressor.shared_values) > 1]:
        raise InputError(f"bench times one kind of forward; {varying[0]} changes with the timestep: use bigain predict")
    if repetitions < _ENOUGH:
        sys.stderr.write(f"warning: {repetitions} repetitions say little about the spread; use {_ENOUGH} or more\n")
    reason, faster = slow_precision(target.type, {"bfloat16": "bf16", "float16": "16"}.get(dtype, "32"))
    if reason:
        sys.stderr.write(f"warning: {dtype} is {reason}; use --dtype float{faster[:2]}\n")
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads or torch.get_num_threads())
        eager = Subject.of(counted, batch or (8 if tune else 2), getattr(torch, dtype), target, channels_last)
        subject = replace(eager, cuda_graph=cuda_graph)
        facts = _facts(subject, model, dtype)
        if tune:
            return Outcome(_fastest(subject, compressors, repetitions, f"{model} on {facts['device_name']} in {dtype}"))
        entrants = measure(subject, compressors, repetitions, compile)
    # Of the methods: read after they ran.
    facts["kernels"] = kernels_note()
    facts |= {"compile": compile, "channels_last": channels_last, "cuda_graph": cuda_graph, "repetitions": repetitions}
    baseline, *methods = [entrant.row(count, counted.baseline) for entrant, count in zip(entrants, flops, strict=True)]
    facts["packages"] = {package: version(package) for package in ("bigain", "torch", "diffusers")}
    result = {**facts, "forwards_per_round": entrants[0].forwards, "baseline": baseline, "methods": methods}
    complete = all(row["error"] is None for row in methods)
    return Outcome(dumps(result, indent=2) + "\n" if json else _text(result), complete)


def _facts(subject: Subject, model: str, dtype: str) -> dict[str, Any]:
    """Run one forward, and return what is timed and on what, as `--json` prints it."""
    from torch import get_num_threads

    from bigain.cost.environment import device_name

    device, (batch, *latent) = subject.noisy.device, subject.noisy.shape
    backend, finite = subject.check(f"{model} cannot run with batch {batch} on {device}")
    return {
        "model": model,
        "network": type(subject.backbone.denoiser).__name__,
        "weights": subject.weights,
        "latent": latent,
        "batch": batch,
        "dtype": dtype,
        "device": str(device),
        "device_name": device_name(device),
        "threads": get_num_threads(),
        "attention_backend": backend,
        "finite": finite,
    }


def _text(result: Mapping[str, Any]) -> str:
    """Return the object that `--json` prints as text for a terminal."""
    from bigain.report.tables import Table

    latents = " x ".join(map(str, result["latent"]))
    layout = "channels last" if result["channels_last"] else "contiguous"
    graphs = ", in CUDA graphs" if result["cuda_graph"] else ""
    repeats = "once" if result["forwards_per_round"] == 1 else f"{result['forwards_per_round']} times in a row"
    facts = {
        "model": f"{result['model']} ({result['network']}, latents {latents}), weights: {result['weights']}",
        "forward": f"{result['batch']} rows, {result['dtype']}, {layout}, {result['attention_backend']}, compile: "
        f"{result['compile']}{graphs}",
        "device": f"{result['device']} ({result['device_name']}), {result['threads']} CPU threads, torch "
        f"{result['packages']['torch']}, kernels: {result['kernels']}",
        "rounds": f"{result['repetitions']}, each method {repeats} in each; medians and (lowest to highest)",
    }
    if not result["finite"]:
        facts["warning"] = "the output of the network is not finite; times may differ from a trained network's"
    rows = [_cells(row) for row in (result["baseline"], *result["methods"]) if row["error"] is None]
    failed = [
        f"{prefix}{row['method']}: not measured: {row[key]}"
        for prefix, key in (("", "error"), ("limit of ", "limit_error"))
        for row in result["methods"]
        if row[key] is not None
    ]
    return "\n".join([Table((), [*facts.items()]).plain(), "", Table(_HEAD, rows).plain(), *failed]) + "\n"


def _fastest(subject: Subject, compressors: Sequence[Compressor], repetitions: int, title: str) -> str:
    """Return the fastest settings as a configuration, with all that were tried in its comments."""
    from bigain.commands.bench.tune import tune
    from bigain.report.tables import Table
    from bigain.runs.summary import compressor_text

    name = ", ".join(compressor_text(compressor.description()) for compressor in compressors) or "no compression"
    results = tune(subject, compressors[0] if compressors else None, repetitions)
    speeds = {settings: result for settings, result in results.items() if not isinstance(result, str)}
    rows = [
        ("-", str(settings), result) if isinstance(result, str) else (f"{result:.4g}", str(settings), "")
        for settings, result in results.items()
    ]
    comments = [
        f"The fastest settings found for {title}, {name}, torch {version('torch')}:",
        *Table(("rows/s", "settings", ""), rows, "r").plain().splitlines(),
        "bigain predict --config YOURS.yaml --config THIS.yaml",
    ]
    fastest = max(speeds, key=lambda settings: speeds[settings])
    return "".join(f"# {line.rstrip()}\n" for line in comments) + fastest.yaml()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    overhead, peak = row["overhead_milliseconds"], row["peak_memory_bytes"]
    return (
        row["method"],
        _spread(row["milliseconds"]),
        _spread(row["ratio"]),
        f"{row['promised_ratio']:.3f}",
        _spread(row["realised_percent"], "%"),
        _spread(row["limit_ratio"]),
        _spread(row["of_limit_percent"], "%"),
        "?" if overhead is None else f"{sum(overhead.values()):.1f}",
        "?" if peak is None else f"{peak / 1e6:,.0f}",
    )


def _spread(values: Mapping[str, float] | None, unit: str = "") -> str:
    return "" if values is None else with_interval(values["median"], values["low"], values["high"], unit)
