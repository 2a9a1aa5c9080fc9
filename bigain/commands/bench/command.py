"""`bigain bench`: parse, measure, and tell it as text or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NoReturn

import torch

from bigain.commands.arguments import ClassParser as Parser
from bigain.commands.arguments import refusals
from bigain.commands.bench.measure import Times, measure
from bigain.commands.bench.ratios import Spread, paired_ratio, realised_percent
from bigain.commands.bench.subject import Subject
from bigain.commands.bench.telling import table
from bigain.commands.configs import find_config
from bigain.commands.flops.model import CountedModel
from bigain.commands.predict import silence_libraries
from bigain.compressors import ABM, IEKVD, LGTM, Compressor
from bigain.cost.attention_kernels import kernels_seen
from bigain.cost.environment import attention_backend, device_name
from bigain.cost.flops import Flops
from bigain.errors import InputError
from bigain.runs.summary import compressor_text

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OPTION = "--compressor"
# Fewer say little about the spread.
_ENOUGH = 5
_PACKAGES = ("bigain", "torch", "diffusers")


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see bigain bench --help")


class _Parser(Parser):
    command = "bigain bench"


def bench(args: Sequence[str], tell: Callable[[str], None]) -> tuple[str, bool]:
    """Run `bigain bench`.

    Args:
        args: Command line after `bench`.
        tell: Is given lines of progress.

    Returns:
        What to print, and whether every method could be measured.

    Raises:
        InputError: If anything given cannot work.
    """
    silence_libraries()
    common, asked = split_methods(args)
    given = _parse(common)
    compressors = [_compressor(options) for options in asked] or [LGTM(ratio=0.7), ABM(ratio=0.7), IEKVD(factor=2)]
    device = _device(given.device)
    model = CountedModel.of(given.model, given.image_size)
    # What cannot work is refused here, before any weight is made.
    flops = [model.baseline, *(model.count(compressor) for compressor in compressors)]
    if given.repetitions < _ENOUGH:
        tell(f"warning: {given.repetitions} repetitions say little about the spread; {_ENOUGH} or more do")
    with _threads(given.threads):
        subject = Subject.of(model, given.batch, _DTYPES[given.dtype], device, given.channels_last)
        about = _about(model, subject, given, device)
        named = [(compressor_text(compressor.description()), compressor) for compressor in compressors]
        times = measure(subject, named, given.repetitions, given.compile, tell)
    rows = [_row(one, counted, flops[0]) for one, counted in zip(times, flops, strict=True)]
    for row, compressor in zip(rows[1:], compressors, strict=True):
        row |= compressor.description()
    complete = all(row["error"] is None for row in rows)
    told = {**about, "forwards_per_round": times[0].forwards, "baseline": rows[0], "methods": rows[1:]}
    return (json.dumps(told, indent=2) + "\n" if given.json else table(told)), complete


def split_methods(args: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Options of the command, and those of each compressor: everything `--compressor...` from one name to the next.

    Raises:
        InputError: If an argument of a compressor comes before any compressor.
    """
    common: list[str] = []
    methods: list[list[str]] = []
    into = common
    for arg in args:
        if arg == _OPTION or arg.startswith(f"{_OPTION}="):
            methods.append([])
        elif arg.startswith(f"{_OPTION}.") and not methods:
            raise InputError(f"{arg} comes before any {_OPTION}, whose argument it is; give {_OPTION} C first")
        if arg.startswith("--"):
            into = methods[-1] if arg.startswith(_OPTION) else common
        into.append(arg)
    return common, methods


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = _Options(prog="bigain bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="sd2")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=_ENOUGH)
    parser.add_argument("--compile", choices=["none", "whole", "regional"], default="none")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(list(args))
    for name in ("batch", "threads", "repetitions"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    return given


def _compressor(options: Sequence[str]) -> Compressor:
    parser = _Parser(prog="bigain bench")
    parser.add_lightning_class_args(Compressor, "compressor", subclass_mode=True, required=False)
    with refusals():
        compressor: Compressor | None = parser.instantiate(parser.parse_args(find_config(options))).compressor
    if compressor is None:
        raise InputError("no compression is measured in any case; give --compressor a class or a file, or leave it out")
    return compressor


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device must be cpu, cuda or cuda:N, not {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{device} has no clock here; device must be cpu, cuda or cuda:N")
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
def _about(model: CountedModel, subject: Subject, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What is measured, on what."""
    with kernels_seen() as kernels:
        try:
            finite = bool(subject.forward().isfinite().all())
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(f"{model.name} cannot run with batch {given.batch} on {device}: {reason}") from error
    return {
        "model": model.name,
        "network": type(subject.backbone.denoiser).__name__,
        "weights": subject.weights,
        "latent": list(model.latent),
        "batch": given.batch,
        "dtype": given.dtype,
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "attention_backend": attention_backend(device, subject.backbone.denoiser, kernels),
        "compile": given.compile,
        "channels_last": given.channels_last,
        "repetitions": given.repetitions,
        "finite": finite,
        "packages": {package: version(package) for package in _PACKAGES},
    }


def _row(times: Times, flops: Flops, baseline: Flops) -> dict[str, Any]:
    """What is told of one method, in ms, GFLOPs of one row, bytes."""
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
    if times.error is not None:
        return row
    ratio = paired_ratio(times.seconds, times.reference)
    realised = realised_percent(ratio, promised)
    phases = times.phases
    return row | {
        "milliseconds": asdict(Spread.of(times.seconds).times(1e3)),
        "ratio": asdict(ratio),
        "realised_percent": None if realised is None else asdict(realised),
        "overhead_milliseconds": None if phases is None else {name: 1e3 * taken for name, taken in phases.items()},
    }
