"""What is looked at: weights, structure, data, disk and device. Nothing heavy is loaded, nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Trainer

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import build_on_meta
from bigain.backbones.inspection import inspect_model
from bigain.compressors import Compressor
from bigain.cost.sites import site_table
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler
from bigain.tokens.grid import Grid

Task = DiffusionClassifier | DiffusionSampler
Status = Literal["ok", "warning", "problem"]

_BYTES_PER_LATENT = 70_000
_GIB = 2**30
_PRECISION = "--trainer.precision bf16-true, or 32-true, and the same for --model.backbone.dtype"


@dataclass(frozen=True)
class Check:
    """What was found out about one thing a run needs.

    Attributes:
        name: What was looked at.
        status: A run works with warnings and does not with problems.
        message: What was found.
        fix: What to do about it; empty where the message says it.
    """

    name: str
    status: Status
    message: str
    fix: str = ""


def weights(backbone: Backbone) -> Iterator[Check]:
    """Every component's files; one finding alone if the model cannot be found."""
    try:
        source = backbone.find(backbone.local_files_only).source
    except InputError as error:
        yield Check("weights", "problem", str(error))
        return
    # The hub has just answered, or the folder is here: what else a hub model lacks comes with the first run.
    fetched = not Path(source).is_dir() and not backbone.local_files_only
    for finding in inspect_model(backbone):
        absent: Status = "warning" if fetched and finding.absent else "problem"
        yield Check(f"weights/{finding.component}", "ok" if finding.ok else absent, finding.message, finding.fix)


def network(backbone: Backbone, data: EvalDataModule) -> Iterator[Check]:
    """Build the network without its weights and try the dataset's images and classes on it."""
    build_on_meta(backbone)
    shape = backbone.latents_of(data.image_size)
    backbone.check_classes(data.class_space.prompts, data.class_space.indices)
    parameters = sum(p.numel() for p in backbone.denoiser.parameters())
    yield Check("network", "ok", f"{parameters / 1e6:.3g} M parameters, latents {' x '.join(map(str, shape))}")


def compression(
    compressor: Compressor, backbone: Backbone, data: EvalDataModule, installed: ExitStack
) -> Iterator[Check]:
    """Install a compressor on the network that `network` built, if it could, beside those that `installed` holds."""
    name = f"compressor/{type(compressor).__name__}"
    if not hasattr(backbone, "denoiser"):
        return
    latent = Grid(*backbone.latents_of(data.image_size)[1:])
    installed.enter_context(compressor.install(backbone.denoiser))
    rows = site_table(compressor, backbone.denoiser, latent)
    flows = sorted({(row["tokens_in"], row["tokens_out"]) for row in rows})
    without = [row["name"] for row in rows if row["tokens_out"] >= row["tokens_in"]]
    if without:
        yield Check(name, "problem", f"changes nothing at {without[0]}", "choose other sites or a stronger setting")
    else:
        yield Check(name, "ok", f"{len(rows)} sites, tokens " + ", ".join(f"{a} -> {b}" for a, b in flows))


def dataset(data: EvalDataModule) -> Iterator[Check]:
    """Lists and files of the dataset, and how many images they give."""
    data.setup("predict")
    here, expected = len(data.items), data.expected_images
    if expected is not None and here < expected:
        yield Check(
            "data",
            "warning",
            f"{data.name}: {here:,} images of {expected:,}",
            "fetch the others for the paper's numbers",
        )
    else:
        official = f" of the official {data.official_images:,}" if data.official_images else ""
        yield Check("data", "ok", f"{data.name}: {here:,} images{official}, {len(data.class_space)} classes")


def images(data: EvalDataModule) -> Iterator[Check]:
    """Decode the first, the middle and the last image."""
    items = getattr(data, "items", [])
    for item in dict.fromkeys(items[i] for i in (0, len(items) // 2, -1) if items):
        try:
            data.read_image(item)
        except InputError as error:
            yield Check("data/images", "warning" if data.on_bad_image == "skip" else "problem", str(error))
            return
    if items:
        yield Check("data/images", "ok", f"{data.where(items[0])} and others read")


def distance(module: Task) -> Iterator[Check]:
    """Extractor and reference statistics of a generation."""
    if not isinstance(module, DiffusionSampler):
        yield Check("reference", "ok", "none needed: this configuration classifies")
        return
    measuring = module.prepare_measuring()
    reference = measuring.reference
    if "distance" in measuring.missing:
        fix = "images are still generated, and `bigain score RUN` computes the distance later"
        yield Check("reference", "warning", f"no distance: {measuring.missing['distance']}", fix)
    elif reference is not None:
        yield Check("reference", "ok", f"{reference.source}: {reference.moments.n} images, {reference.protocol}")
    for metric in module.metrics:
        if metric.name in measuring.missing:
            reason = measuring.missing[metric.name]
            yield Check(metric.name, "warning", f"no {metric.title or metric.name}: {reason}")


def disk(output: Path, module: Task, data: EvalDataModule) -> Iterator[Check]:
    """Room for predictions and cached latents; asks nothing of a dataset that could not be opened."""
    images = len(getattr(data, "items", []))
    needs = {output: images * module.bytes_per_image(len(data.class_space), data.image_size) if images else 0}
    if getattr(module, "latent_cache", None) is not None:
        needs[Path(str(module.latent_cache)).expanduser()] = images * _BYTES_PER_LATENT
    for path, need in needs.items():
        there = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.is_dir())
        free = shutil.disk_usage(there).free
        told = f"{there}: {free / _GIB:,.1f} GiB free, about {need / _GIB:.2f} GiB needed"
        if not os.access(there, os.W_OK):
            yield Check("disk", "problem", f"{there} cannot be written", "choose another --output or latent_cache")
        elif free < need:
            yield Check("disk", "problem", told, "free some, or choose another --output or latent_cache")
        else:
            yield Check("disk", "ok", told)


def device(trainer: Trainer | None, refusal: str | None, backbone: Backbone) -> Iterator[Check]:
    """What the trainer would run on; `refusal` says why there is no trainer."""
    if trainer is None:
        yield Check("device", "problem", str(refusal), "--trainer.accelerator auto --trainer.devices 1")
        return
    kind = trainer.strategy.root_device.type
    precision = str(trainer.precision)
    told = f"{trainer.world_size} x {kind}, precision {precision}"
    if kind == "cpu" and precision.startswith("16"):
        yield Check("device", "warning", f"{told}: slow, processors compute float16 in software", _PRECISION)
    elif kind == "cuda" and precision.startswith("bf16") and not torch.cuda.is_bf16_supported(False):
        yield Check("device", "warning", f"{told}: this GPU emulates bfloat16", "--trainer.precision 16-true")
    else:
        yield Check("device", "ok", told)
    yield from _memory(kind, precision, backbone)


def _memory(kind: str, precision: str, backbone: Backbone) -> Iterator[Check]:
    denoiser = getattr(backbone, "denoiser", None)
    if denoiser is None or kind not in ("cpu", "cuda"):
        return
    total = torch.cuda.mem_get_info()[1] if kind == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = 2 if precision in ("16-true", "bf16-true") else 4
    need = size * sum(p.numel() for p in denoiser.parameters())
    told = f"{total / _GIB:,.0f} GiB in all, {need / _GIB:.1f} GiB for the denoiser's weights"
    enough = 1.5 * need < total
    yield Check("memory", "ok" if enough else "problem", told, "" if enough else _PRECISION)
