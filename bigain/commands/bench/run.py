"""Everything between the arguments of `bigain bench` and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from bigain.backbones.compilation import Compile
from bigain.commands.bench.measure import Times, measure
from bigain.commands.bench.ratios import Spread, paired_ratio, realised_percent
from bigain.commands.bench.subject import Subject
from bigain.commands.configs import find_config
from bigain.commands.flops.model import CountedModel
from bigain.commands.parsing import create, options_of
from bigain.compressors import ABM, IEKVD, LGTM, Compressor
from bigain.cost.attention_kernels import kernels_seen
from bigain.cost.environment import attention_backend, device_name
from bigain.cost.flops import Flops
from bigain.errors import InputError
from bigain.runs.summary import compressor_text

# Fewer repetitions are warned about.
_ENOUGH = 5
_PACKAGES = ("bigain", "torch", "diffusers")


def run(
    options: Sequence[str],
    tell: Callable[[str], None],
    *,
    model: str,
    image_size: int | None,
    batch: int,
    dtype: str,
    device: str | None,
    threads: int | None,
    repetitions: int,
    compile: Compile,
    channels_last: bool,
) -> dict[str, Any]:
    """Run `bigain bench` with its arguments; `tell` receives lines of progress.

    Returns:
        The object that `--json` prints.

    Raises:
        InputError: If an argument cannot work.
    """
    compressors = compressors_of(options) or [LGTM(ratio=0.7), ABM(ratio=0.7), IEKVD(factor=2)]
    place = _device(device)
    counted = CountedModel.of(model, image_size)
    # Refuses what cannot work before any weights exist.
    flops = [counted.baseline, *(counted.count(compressor) for compressor in compressors)]
    if repetitions < _ENOUGH:
        tell(f"warning: {repetitions} repetitions say little about the spread; use {_ENOUGH} or more")
    with _threads(threads):
        subject = Subject.of(counted, batch, getattr(torch, dtype), place, channels_last)
        result = {
            "model": model,
            "network": type(subject.backbone.denoiser).__name__,
            "weights": subject.weights,
            "latent": list(counted.latent),
            "batch": batch,
            "dtype": dtype,
            "device": str(place),
            "device_name": device_name(place),
            "threads": torch.get_num_threads(),
            **_first_forward(subject, f"{model} cannot run with batch {batch} on {place}"),
            "compile": compile,
            "channels_last": channels_last,
            "repetitions": repetitions,
            "packages": {package: version(package) for package in _PACKAGES},
        }
        named = [(compressor_text(compressor.description()), compressor) for compressor in compressors]
        times = measure(subject, named, repetitions, compile, tell)
    rows = [_row(measured, count, flops[0]) for measured, count in zip(times, flops, strict=True)]
    for row, compressor in zip(rows[1:], compressors, strict=True):
        row |= compressor.description()
    return {**result, "forwards_per_round": times[0].forwards, "baseline": rows[0], "methods": rows[1:]}


def compressors_of(options: Sequence[str]) -> list[Compressor]:
    """Create the compressors of a command line; the options after each `--compressor` are its arguments.

    Raises:
        InputError: If there is an option before any compressor, or a compressor is invalid.
    """
    groups: list[list[str]] = []
    for option, *values in options_of(options)[1]:
        name = option.partition("=")[0]
        if name == "--compressor":
            groups.append([])
        elif not name.startswith("--compressor."):
            raise InputError(f"unrecognized option {name}; see bigain bench --help")
        elif not groups:
            raise InputError(f"{option} comes before any --compressor, whose argument it is; give --compressor C first")
        groups[-1] += [option, *values]
    compressors = [
        create(Compressor, "compressor", find_config(group), "bigain bench")  # type: ignore[type-abstract]
        for group in groups
    ]
    if None in compressors:
        raise InputError("no compression is always measured; give --compressor a class or a file, or leave it out")
    return [compressor for compressor in compressors if compressor is not None]


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device must be cpu, cuda or cuda:N, not {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"times cannot be measured on {device}; device must be cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"there is no device {name} here; torch sees {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", device.index or 0)
    return device


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _first_forward(subject: Subject, problem: str) -> dict[str, Any]:
    """Return the attention backend, and whether the output is finite; raise an InputError if it cannot run."""
    device = subject.noisy.device
    with kernels_seen() as kernels:
        try:
            finite = bool(subject.forward().isfinite().all())
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(f"{problem}: {reason}") from error
    return {"attention_backend": attention_backend(device, subject.backbone.denoiser, kernels), "finite": finite}


def _row(times: Times, flops: Flops, baseline: Flops) -> dict[str, Any]:
    """Return the numbers of one method: ms, GFLOPs of one row, bytes."""
    promised = flops.total / baseline.total
    row: dict[str, Any] = {
        "method": times.name,
        "milliseconds": None,
        "ratio": None,
        "promised_ratio": promised,
        "realised_percent": None,
        "gflops": flops.total / 1e9,
        "overhead_milliseconds": None,
        "peak_memory_bytes": times.peak_memory,
        "error": times.error,
    }
    if times.error is None:
        ratio = paired_ratio(times.seconds, times.reference)
        realised = realised_percent(ratio, promised)
        row["milliseconds"] = asdict(Spread.of(times.seconds).times(1e3))
        row["ratio"] = asdict(ratio)
        row["realised_percent"] = None if realised is None else asdict(realised)
        if times.phases is not None:
            row["overhead_milliseconds"] = {name: 1e3 * seconds for name, seconds in times.phases.items()}
    return row
