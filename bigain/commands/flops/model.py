"""The model that is counted, and its cost with and without compression."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import backbone_without_weights, build_on_meta, geometry_of, shipped_geometries
from bigain.commands.configs import load_yaml, shipped_configs
from bigain.commands.parsing import create
from bigain.compressors import Compressor
from bigain.cost.flops import Counted, reduction_percent
from bigain.cost.sites import site_table
from bigain.errors import InputError
from bigain.report.tables import Table
from bigain.runs.summary import compressor_text
from bigain.tokens.grid import Grid


class CountedModel(Counted):
    """A model whose FLOPs are counted.

    Attributes:
        name: As given by the user.
        source: A folder, an embedded model's name, or a hub id.
        grid: Latent size.
    """

    def __init__(self, name: str, backbone: Backbone, image_size: int | None) -> None:
        """Count a model, with its networks on the meta device, at an image size or the one that it was trained on."""
        self.source, condition = backbone.model, backbone.blank_condition()
        # For messages: the folder of shipped sizes means nothing to the user.
        self.name = backbone.model = name
        latent = backbone.latent_shape if image_size is None else backbone.latents_of(image_size)
        self.grid = Grid(*latent[1:])
        super().__init__(backbone, latent, condition)

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
        return cls(name, _find(name), image_size)

    @classmethod
    def of_backbone(cls, backbone: Backbone, image_size: int) -> CountedModel:
        """Count the model of a configuration, which gets its networks on the meta device and can no longer compute.

        Raises:
            InputError: If its sizes cannot be read, or it does not support this image size.
        """
        return cls(backbone.model, _without_weights(backbone), image_size)


def _find(name: str) -> Backbone:
    models = shipped_configs() / "models"
    if name not in shipped_geometries() and not Path(name).is_dir():
        for file in (Path(name), shipped_configs() / name, models / f"{name}.yaml"):
            if file.suffix == ".yaml" and file.is_file():
                return _configured(file)
    try:
        return backbone_without_weights(name)
    except InputError as error:
        if "/" in name or Path(name).is_dir():
            raise
        names = dict.fromkeys([*shipped_geometries(), *sorted(path.stem for path in models.glob("*.yaml"))])
        raise InputError(
            f"no model {name!r}: expected {', '.join(names)}, a diffusers folder or a hub id owner/name"
        ) from error


def _configured(file: Path) -> Backbone:
    """Return the backbone of a model configuration."""
    try:
        section = dumps(load_yaml(file)["init_args"]["backbone"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no model configuration; expected init_args with a backbone") from error
    backbone = create(Backbone, "backbone", ["--backbone", section], "bigain flops")  # type: ignore[type-abstract]
    if backbone is None:
        raise InputError(f"{file} has no backbone")
    return _without_weights(backbone)


def _without_weights(backbone: Backbone) -> Backbone:
    backbone.model = geometry_of(backbone.model)
    build_on_meta(backbone)
    return backbone


def count_text(model: CountedModel, compressor: Compressor | None, as_json: bool) -> str:
    """Return FLOPs by category, and the tokens at every compressed site."""
    baseline = model.baseline
    counted = baseline if compressor is None else model.count([compressor])
    sites = [] if compressor is None else site_table(compressor, model.backbone.denoiser, model.grid)
    if as_json:
        content = {
            "gflops": counted.total / 1e9,
            "by_category": counted.gflops,
            "baseline_gflops": baseline.total / 1e9,
            "reduction_percent": reduction_percent(counted, baseline),
            "sites": [{key: site[key] for key in ("name", "tokens_in", "tokens_out")} for site in sites],
        }
        return dumps(content, indent=2) + "\n"
    latents = " x ".join(map(str, model.latent))
    total = f"{counted.total / 1e9:.3f} per evaluation"
    facts = [("model", f"{model.name} ({type(model.backbone.denoiser).__name__}, latents {latents})")]
    columns = {"GFLOPs": counted.gflops}
    if compressor is not None:
        facts.append(("compressor", compressor_text(compressor.description())))
        total += f", {reduction_percent(counted, baseline):.2f} % less than {baseline.total / 1e9:.3f}"
        columns["without"] = baseline.gflops
    categories = [[name, *(f"{column[name]:.3f}" for column in columns.values())] for name in counted.gflops]
    tables = [Table((), [*facts, ("GFLOPs", total)]), Table(["category", *columns], categories, "lrr")]
    if sites:
        rows = [(site["name"], f"{site['tokens_in']} -> {site['tokens_out']}") for site in sites]
        tables.append(Table(("site", "tokens"), rows))
    return "\n\n".join(table.plain() for table in tables) + "\n"
