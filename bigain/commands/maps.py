"""`bigain maps`: salience and merged tokens of one site, averaged over noises; imports torch when it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigain.commands.options import checked
from bigain.commands.parsing import Outcome
from bigain.commands.predict import silence_libraries
from bigain.errors import InputError
from bigain.runs.numbers import counted

if TYPE_CHECKING:
    from bigain.backbones.sites import Site
    from bigain.compressors import Compressor
    from bigain.data import EvalDataModule
    from bigain.data.selection import Item
    from bigain.inspector.maps import SiteMap


def maps(
    *options: str,
    site: int | None = None,
    timestep: int = 200,
    draws: int = 100,
    ratio: float | None = None,
    images: int = 4,
    output: Path = Path("maps"),
) -> Outcome:
    """Draw the Laplacian salience of the tokens at one site and which of them a compressor merges or keeps as keys.

    Both are averaged over noises of one timestep, without a class prompt. The compressor acts at this site only, so the
    tokens are those of the uncompressed network. Writes maps.png, and maps.npz with the arrays of every noise.

    Args:
        *options: As for `bigain predict`: --config demo_lgtm.yaml --data.limit 8
        site: Index of the transformer block; by default the last one of the highest resolution, which is in the last
            up block of a U-Net.
        timestep: From 0, almost no noise, to 999.
        draws: Noises of each image.
        ratio: Fraction of tokens to remove; by default that of the configuration. Cells are enlarged if needed.
        images: Images to draw, the first of each class.
        output: Folder to write to.

    Raises:
        InputError: If the configuration does not have exactly one compressor, or an argument cannot work.
    """
    if not 0 <= timestep < 1000 or min(draws, images) < 1:
        raise InputError(
            f"--timestep must be in 0..999, --draws and --images at least 1, not {timestep}, {draws} and {images}"
        )
    # One process draws everything, and no run directory is written.
    command = checked(["predict", *options, "--trainer.logger", "false", "--trainer.devices", "1"])
    from bigain.backbones.sites import layout_of
    from bigain.commands.flops.search import changed, innermost
    from bigain.commands.lightning_cli import Prepared
    from bigain.compressors.where import Where
    from bigain.inspector.noise_maps import NoiseMaps
    from bigain.runs.summary import compressor_text
    from bigain.tasks.preparing import BackboneModule

    silence_libraries()
    cli = Prepared(command)
    module, compressors, data = cli.model, cli.compressors(), cli.datamodule
    if not isinstance(module, BackboneModule) or len(compressors) != 1:
        raise InputError(f"maps needs a model of bigain and one compressor, not {len(compressors)}; see --compressor")
    if "where" not in innermost(compressors[0]).settings():
        raise InputError(f"{type(compressors[0]).__name__} decides about no tokens, so there is nothing to draw")
    module.backbone.load()
    target = _site(layout_of(module.backbone.denoiser).sites, site)
    settings, note = ({}, "") if ratio is None else _for_ratio(compressors[0], ratio)
    compressor = changed(compressors[0], where=Where(target.stride, target.stride, blocks=(target.index,)), **settings)
    watcher = NoiseMaps(module, target.index, timestep, draws, images, cli.config.predict.seed)
    compressor.onlookers.append(watcher)
    cli.trainer.callbacks = [compressor]  # type: ignore[attr-defined]
    cli.trainer.predict(watcher, datamodule=data, return_predictions=False)
    if not watcher.maps:
        raise InputError(f"{data.name}: none of the images could be read")
    title = f"{compressor_text(compressor.description())}, {module.backbone.model}, {data.name}"
    files = _write(output, watcher.maps, data, title)
    facts = f"{counted(len(watcher.maps), 'image')}, {counted(draws, 'noise')} at timestep {timestep}"
    lines = [title, f"site {target.index}, {target.name}; {facts}", note, *map(str, files)]
    return Outcome("".join(f"{line}\n" for line in lines if line))


def _write(folder: Path, maps: Mapping[Item, SiteMap], data: EvalDataModule, title: str) -> tuple[Path, Path]:
    """Write maps.npz, and maps.png with this title; return both paths."""
    from bigain.inspector.maps import write_site
    from bigain.inspector.sheets import Subject, noise_sheet
    from bigain.runs.files import replacing

    picture, arrays = folder / "maps.png", folder / "maps.npz"
    write_site(arrays, {item.image_id: site_map for item, site_map in maps.items()})
    names, subjects = data.class_space.names, []
    for item in maps:
        subject_title = f"{item.image_id}: {', '.join(names[label] for label in item.labels) or 'no class'}"
        subjects.append(Subject(data.read_image(item).permute(1, 2, 0).numpy(), [subject_title, title]))
    with replacing(picture, "choose another --output") as file:
        noise_sheet(subjects, list(maps.values())).save(file, "PNG")
    return picture, arrays


def _site(sites: tuple[Site, ...], index: int | None) -> Site:
    """Return the site with an index, by default the last one of the highest resolution."""
    if index is None:
        return max(sites, key=lambda site: (-site.stride, site.index))
    if not 0 <= index < len(sites):
        names = ", ".join(f"{site.index} ({site.name})" for site in sites)
        raise InputError(f"there is no site {index}; expected one of {names}")
    return sites[index]


def _for_ratio(compressor: Compressor, ratio: float) -> tuple[dict[str, Any], str]:
    """Return the settings for a ratio, and a remark if cells have to be larger than they are."""
    from bigain.commands.flops.search import innermost

    settings = innermost(compressor).settings()
    if "ratio" not in settings:
        raise InputError(f"{type(compressor).__name__} has no ratio; leave --ratio out")
    cell = settings.get("cell")
    if cell is not None and not 0 < ratio < 1:
        raise InputError(f"--ratio must be above 0 and below 1, not {ratio:g}: one token of each cell stays")
    if cell is None or ratio <= 1 - 1 / cell.area:
        return {"ratio": ratio}, ""
    side = math.ceil(math.sqrt(round(1 / (1 - ratio), 9)))
    limit = f"{cell.h}x{cell.w} cells remove at most {100 * (1 - 1 / cell.area):g} %"
    note = f"cells of {side}x{side} tokens: one token of each cell stays, so {limit}"
    return {"ratio": ratio, "cell": (side, side)}, note
