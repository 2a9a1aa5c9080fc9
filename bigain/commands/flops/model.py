"""The model that is counted: which one a name means, and what it costs as it is."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import backbone_without_weights, build_on_meta, geometry_of, shipped_geometries
from bigain.commands.arguments import ClassParser as Parser
from bigain.commands.arguments import refusals
from bigain.commands.configs import shipped_configs
from bigain.compressors import Compressor
from bigain.cost.flops import Flops, count_flops
from bigain.cost.sites import refuse_without_effect
from bigain.errors import InputError
from bigain.tokens.grid import Grid


@dataclass(frozen=True)
class CountedModel:
    """A network on the meta device, one row of its inputs, and what that row costs without compression.

    Attributes:
        name: As the user gave it.
        source: Where the model is, or would be: a folder, an embedded model's name, or a hub id.
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
            image_size: Side of the images in px; None is what the model was trained on.

        Raises:
            InputError: If there is no such model, or it cannot take such images.
        """
        if image_size is not None and image_size < 1:
            raise InputError(f"image_size must be at least 1 px, not {image_size}")
        return cls._of(name, _find(name), image_size)

    @classmethod
    def of_backbone(cls, backbone: Backbone, image_size: int) -> CountedModel:
        """Count the model of a configuration.

        Args:
            backbone: Not loaded; it gets its denoiser on the meta device and cannot compute any more.
            image_size: Side of the images in px.

        Raises:
            InputError: If its sizes cannot be read, or it cannot take such images.
        """
        name = backbone.model
        backbone.model = geometry_of(name)
        build_on_meta(backbone)
        return cls._of(name, backbone, image_size)

    @classmethod
    def _of(cls, name: str, backbone: Backbone, image_size: int | None) -> CountedModel:
        condition = backbone.blank_condition(backbone.local_files_only)
        source = backbone.model
        # For messages: shipped sizes lie in a folder whose path means nothing to anyone.
        backbone.model = name
        latent = backbone.latent_shape if image_size is None else backbone.latents_of(image_size)
        return cls(name, source, backbone, latent, condition, count_flops(backbone, latent, condition))

    @property
    def grid(self) -> Grid:
        """Size of the latents."""
        return Grid(*self.latent[1:])

    def count(self, *compressors: Compressor) -> Flops:
        """FLOPs under compressors on disjoint sites.

        Raises:
            InputError: If one cannot work here, or leaves all tokens of some site.
        """
        with ExitStack() as installed:
            for compressor in compressors:
                refuse_without_effect(compressor, self.backbone.denoiser, self.grid)
                installed.enter_context(compressor.applied_to(self.backbone.denoiser))
            return count_flops(self.backbone, self.latent, self.condition)


def _find(name: str) -> Backbone:
    if name not in shipped_geometries() and not Path(name).is_dir():
        for file in (Path(name), shipped_configs() / "models" / f"{name}.yaml"):
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
    """The backbone of a model configuration."""
    try:
        given: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        section = given["init_args"]["backbone"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no model configuration ({error!r}); expected init_args with a backbone") from error
    parser = Parser(prog="bigain flops")
    parser.add_subclass_arguments(Backbone, "backbone")
    with refusals():
        backbone: Backbone = parser.instantiate(parser.parse_object({"backbone": section})).backbone
    backbone.model = geometry_of(backbone.model)
    build_on_meta(backbone)
    return backbone
