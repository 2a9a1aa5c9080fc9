"""The model that is counted, by its name, and its cost without compression."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import backbone_without_weights, build_on_meta, geometry_of, shipped_geometries
from bigain.commands.configs import shipped_configs
from bigain.commands.parsing import create
from bigain.compressors import Compressor
from bigain.cost.flops import Flops, count_flops
from bigain.cost.sites import refuse_without_effect
from bigain.errors import InputError
from bigain.tokens.grid import Grid


@dataclass(frozen=True)
class CountedModel:
    """A network on the meta device, one row of its inputs, and the cost of that row without compression.

    Attributes:
        name: As given by the user.
        source: A folder, an embedded model's name, or a hub id.
        backbone: Holds the denoiser.
        latent: (channels, height, width).
        condition: `(1, ...)`.
        baseline: FLOPs without any compressor.
    """

    name: str
    source: str
    backbone: Backbone
    latent: tuple[int, int, int]
    condition: Tensor
    baseline: Flops

    @classmethod
    def of(cls, name: str, image_size: int | None) -> CountedModel:
        """Find a model and count it.

        Args:
            name: Name of shipped sizes or of a shipped configuration in `models/`, YAML file, folder or hub id.
            image_size: Side of the images in px; None for the size that the model was trained on.

        Raises:
            InputError: If there is no such model, or it does not support this size.
        """
        if image_size is not None and image_size < 1:
            raise InputError(f"image_size must be at least 1 px, not {image_size}")
        return cls._of(name, _find(name), image_size)

    @classmethod
    def of_backbone(cls, backbone: Backbone, image_size: int) -> CountedModel:
        """Count the model of a configuration.

        Args:
            backbone: Not loaded; it gets its denoiser on the meta device and can no longer compute.
            image_size: Side of the images in px.

        Raises:
            InputError: If its sizes cannot be read, or it does not support this image size.
        """
        name = backbone.model
        backbone.model = geometry_of(name)
        build_on_meta(backbone)
        return cls._of(name, backbone, image_size)

    @classmethod
    def _of(cls, name: str, backbone: Backbone, image_size: int | None) -> CountedModel:
        condition = backbone.blank_condition(backbone.local_files_only)
        source = backbone.model
        # For messages: the folder of shipped sizes means nothing to the user.
        backbone.model = name
        latent = backbone.latent_shape if image_size is None else backbone.latents_of(image_size)
        return cls(name, source, backbone, latent, condition, count_flops(backbone, latent, condition))

    @property
    def grid(self) -> Grid:
        """The size of the latents."""
        return Grid(*self.latent[1:])

    def count(self, *compressors: Compressor) -> Flops:
        """Return the FLOPs with compressors on disjoint sites.

        Raises:
            InputError: If one cannot work here, or removes no token at a site.
        """
        with ExitStack() as installed:
            for compressor in compressors:
                refuse_without_effect(compressor, self.backbone.denoiser, self.grid)
                installed.enter_context(compressor.applied_to(self.backbone.denoiser))
            return count_flops(self.backbone, self.latent, self.condition)


def _find(name: str) -> Backbone:
    if name not in shipped_geometries() and not Path(name).is_dir():
        for file in (Path(name), shipped_configs() / name, shipped_configs() / "models" / f"{name}.yaml"):
            if file.suffix == ".yaml" and file.is_file():
                return _configured(file)
    try:
        return backbone_without_weights(name)
    except InputError as error:
        if "/" in name or Path(name).is_dir():
            raise
        configs = sorted(path.stem for path in (shipped_configs() / "models").glob("*.yaml"))
        known = ", ".join(dict.fromkeys([*shipped_geometries(), *configs]))
        raise InputError(f"no model {name!r}: expected {known}, a diffusers folder or a hub id owner/name") from error


def _configured(file: Path) -> Backbone:
    """Return the backbone of a model configuration."""
    try:
        section = yaml.safe_load(file.read_text(encoding="utf-8"))["init_args"]["backbone"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no model configuration ({error!r}); expected init_args with a backbone") from error
    backbone = create(Backbone, "backbone", ["--backbone", json.dumps(section)], "bigain flops")  # type: ignore[type-abstract]
    if backbone is None:
        raise InputError(f"{file} has no backbone")
    backbone.model = geometry_of(backbone.model)
    build_on_meta(backbone)
    return backbone
