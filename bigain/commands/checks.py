"""The checks of `bigain doctor`. Nothing heavy is loaded, nothing is written."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import build_on_meta
from bigain.backbones.inspection import inspect_model
from bigain.commands.lightning_cli import WithoutTrainer
from bigain.commands.predict import silence_libraries
from bigain.compressors import Compressor
from bigain.compressors.base import nearest_timesteps
from bigain.cost.environment import slow_precision
from bigain.cost.sites import site_table
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler, FeatureProbe
from bigain.runs.directory import check_directory
from bigain.runs.logs import finished_images
from bigain.runs.numbers import counted
from bigain.tasks.classifier import check_answers
from bigain.tokens.grid import Grid

Task = DiffusionClassifier | DiffusionSampler | FeatureProbe
Status = Literal["ok", "warning", "problem"]

_BYTES_PER_LATENT = 70_000
_GIB = 2**30


class Check(NamedTuple):
    """The result of one check, and what to do about it; a run works despite warnings."""

    name: str
    status: Status
    message: str
    fix: str = ""


def run_checks(options: Sequence[str]) -> list[Check]:
    """Check a configuration; `options` are those of `bigain predict`."""
    silence_libraries()
    cli = WithoutTrainer(["predict", *options])
    logger = logging.getLogger("bigain")
    level = logger.level
    # The checks report what would be logged.
    logger.setLevel(logging.ERROR)
    try:
        return list(_checks(cli))
    finally:
        logger.setLevel(level)


def _checks(cli: WithoutTrainer) -> Iterator[Check]:
    module, data = cli.model, cli.datamodule
    if not isinstance(module, Task):
        raise InputError(f"doctor checks the modules of bigain, not {type(module).__name__}")
    backbone = module.backbone
    weights = list(_errors_as_problems("weights", _weights(backbone)))
    yield from weights
    yield from _errors_as_problems("data", _dataset(module, data))
    yield from _errors_as_problems("data/images", _images(data))
    if len(weights) > 1:
        yield from _errors_as_problems("network", _network(backbone, data))
        if hasattr(data, "items") and all(check.status != "problem" for check in weights):
            yield from _errors_as_problems("fit", _fit(module, data))
        with ExitStack() as installed:
            for compressor in cli.compressors() if hasattr(backbone, "denoiser") else ():
                name = f"compressor/{type(compressor).__name__}"
                yield from _errors_as_problems(name, _compression(name, compressor, module, data, installed))
    yield from _errors_as_problems("reference", _reference(module))
    yield from _errors_as_problems("run directory", _directory(cli))
    yield from _disk(cli.output, module, data)
    yield from _device(cli)


def _errors_as_problems(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks up to the first InputError, which becomes a problem."""
    try:
        yield from checks
    except InputError as error:
        yield Check(name, "problem", str(error))


def _directory(cli: WithoutTrainer) -> Iterator[Check]:
    check_directory(cli.output, cli.config.predict)
    finished = 0 if cli.config.predict.overwrite else len(finished_images(cli.output / "predictions"))
    state = f"{finished:,} images are done already" if finished else "new"
    yield Check("run directory", "ok", f"{cli.output} ({state})")


def _weights(backbone: Backbone) -> Iterator[Check]:
    """Check every component's files; a model that cannot be found is refused."""
    source = backbone.find().source
    # The first run downloads missing files of a model on the hub.
    downloads = not Path(source).is_dir() and not backbone.local_files_only
    for finding in inspect_model(backbone):
        missing: Status = "warning" if downloads and finding.absent else "problem"
        yield Check(f"weights/{finding.component}", "ok" if finding.ok else missing, finding.message, finding.fix)


def _network(backbone: Backbone, data: EvalDataModule) -> Iterator[Check]:
    """Build the network without its weights."""
    build_on_meta(backbone)
    shape = backbone.latents_of(data.image_size)
    parameters = sum(p.numel() for p in backbone.denoiser.parameters())
    yield Check("network", "ok", f"{parameters / 1e6:.3g} M parameters, latents {' x '.join(map(str, shape))}")


def _fit(module: Task, data: EvalDataModule) -> Iterator[Check]:
    """Check model, scheduler, text encoder and dataset together, as a run does; the settings are loaded."""
    warning = module.check_fit(data)
    yield Check("fit", "warning" if warning else "ok", warning or "model, scheduler and data")


def _compression(
    name: str, compressor: Compressor, module: Task, data: EvalDataModule, installed: ExitStack
) -> Iterator[Check]:
    """Install a compressor on the network that `_network` built, beside the compressors that `installed` holds."""
    backbone = module.backbone
    compressor.check_module(module)
    latent = Grid(*backbone.latents_of(data.image_size)[1:])
    installed.enter_context(compressor.install(backbone.denoiser))
    rows = site_table(compressor, backbone.denoiser, latent, nearest_timesteps(module.visited))
    counts = sorted({(row["tokens_in"], row["tokens_out"]) for row in rows})
    yield Check(name, "ok", f"{counted(len(rows), 'site')}, tokens " + ", ".join(f"{a} -> {b}" for a, b in counts))


def _dataset(module: Task, data: EvalDataModule) -> Iterator[Check]:
    """Check lists and files of the dataset, and the number of images."""
    data.setup("predict")
    available, expected = len(data.items), data.expected_images
    if expected is not None and available < expected:
        message = f"{data.name}: {available:,} images of {expected:,}"
        yield Check("data", "warning", message, "fetch the rest for the paper's numbers")
    else:
        official = f" of the official {data.official_images:,}" if data.official_images else ""
        classes = counted(len(data.class_space), "class")
        yield Check("data", "ok", f"{data.name}: {counted(available, 'image')}{official}, {classes}")
    for note in data.notes:
        yield Check("data/files", "warning", note)
    if isinstance(module, DiffusionClassifier):
        check_answers(data.class_space)


def _images(data: EvalDataModule) -> Iterator[Check]:
    """Decode the first, the middle and the last image."""
    items = getattr(data, "items", [])
    # A dataset without classes has prompts only.
    if not items or not len(data.class_space):
        return
    for item in dict.fromkeys(items[i] for i in (0, len(items) // 2, -1)):
        try:
            data.read_image(item)
        except InputError as error:
            yield Check("data/images", "warning" if data.on_bad_image == "skip" else "problem", str(error))
            return
    yield Check("data/images", "ok", f"{data.where(items[0])} and others read")


def _reference(module: Task) -> Iterator[Check]:
    """Check extractor and reference statistics of a generation."""
    if not isinstance(module, DiffusionSampler):
        yield Check("reference", "ok", "none needed: this configuration generates nothing")
        return
    measuring = module.prepare_measuring()
    missing, reference = measuring.missing, measuring.reference
    if "distance" in missing:
        fix = "images are still generated, and `bigain score RUN` computes the distance later"
        yield Check("reference", "warning", f"no distance: {missing['distance']}", fix)
    elif reference is not None:
        yield Check("reference", "ok", f"{reference.source}: {reference.moments.n} images, {reference.protocol}")
    for metric in module.metrics:
        if metric.name in missing:
            yield Check(metric.name, "warning", f"no {metric.title or metric.name}: {missing[metric.name]}")


def _disk(output: Path, module: Task, data: EvalDataModule) -> Iterator[Check]:
    """Check the space for predictions and cached latents; none is needed for a dataset that could not be opened."""
    images = len(getattr(data, "items", []))
    needs = {output: images * module.bytes_per_image(len(data.class_space), data.image_size) if images else 0}
    if getattr(module, "latent_cache", None) is not None:
        needs[Path(str(module.latent_cache)).expanduser()] = images * _BYTES_PER_LATENT
    for path, need in needs.items():
        folder = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.is_dir())
        free = shutil.disk_usage(folder).free
        message, fix = f"{folder}: {free / _GIB:,.1f} GiB free, about {need / _GIB:.2f} GiB needed", ""
        if not os.access(folder, os.W_OK):
            message, fix = f"{folder} cannot be written", "choose another --output or latent_cache"
        elif free < need:
            fix = "free some, or choose another --output or latent_cache"
        yield Check("disk", "problem" if fix else "ok", message, fix)


def _device(cli: WithoutTrainer) -> Iterator[Check]:
    if cli.trainer is None:
        yield Check("device", "problem", cli.trainer_error, "--trainer.accelerator auto --trainer.devices 1")
        return
    kind, precision = cli.trainer.strategy.root_device.type, str(cli.trainer.precision)
    message = f"{cli.trainer.world_size} x {kind}, precision {precision}"
    reason, faster = slow_precision(kind, precision)
    if reason:
        yield Check("device", "warning", f"{message}: {reason}", f"--trainer.precision {faster}")
    else:
        yield Check("device", "ok", message)
