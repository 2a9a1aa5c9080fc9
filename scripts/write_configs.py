"""Write the entry files of `configs/`.

    python scripts/write_configs.py

Entries of the paper follow its published cells (`bigain/report/paper_results.csv`); those of the embedded models follow
the shipped compressors. Written by hand are the parts in `configs/{models,data,compressors}` and the tables.
`tests/test_configs.py` checks that the committed files equal the output of this script.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bigain.compressors import methods
from bigain.report.paper import printed
from bigain.runs.schema import TASKS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

DATASETS = {
    "pets": "Oxford-IIIT Pets",
    "imagenet100": "ImageNet-100",
    "imagenet1k": "ImageNet-1K",
    "coco": "COCO-2017",
}
NETWORKS = {"sd2": "SD 2.0", "dit_xl_2_512": "DiT-XL/2-512"}
MODELS = {"sd2": "sd2", "dit_xl_2_512": "dit_xl_512"}
EMBEDDED = {
    "demo": ("DiT", "shapes_dit", "about five minutes"),
    "demo_unet": ("U-Net", "shapes_unet", "about ten minutes"),
    "demo_flow": ("flow-matching DiT", "shapes_flow", "about five minutes"),
}
DESCRIPTIONS = {
    "average_pool": "average pooling",
    "cam": "CAM around LGTM",
    "dipgo": "DiP-GO",
    "frequency_kv_high": "FrequencyKV that keeps the highest scores",
    "frequency_kv_low": "FrequencyKV that keeps the lowest scores",
    "iekvd": "IE-KVD (BiGain_TD)",
    "lgtm": "LGTM (BiGain_TM)",
}
# The tasks of the paper, and the suffix of every task in names.
JOINT, SUFFIXES = TASKS[:2], dict(zip(TASKS, ("", "_generation", "_features"), strict=True))
PRUNERS = ("dipgo", "mosaicdiff")
# Networks that are not in the paper, by their part of file names: title; model, dataset and data of a generation.
OTHER_NETWORKS = {
    "sd15": ("SD 1.5", "sd15", "pets", "pets"),
    "sd21": ("SD 2.1", "sd21", "pets", "pets"),
    "dit256": ("DiT-XL/2-256", "dit_xl_256", "imagenet100", "imagenet100_256"),
}
# Networks after the paper: title; model; suffix of the data of their image size; files of compressors.
LATER_NETWORKS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "pixart": ("PixArt-alpha-512", "pixart_512", "", {"iekvd": "iekvd_dit"}),
    "sdxl": ("SDXL", "sdxl", "_1024", {}),
    "sd3": ("SD 3 medium", "sd3", "_1024", {}),
    "flux": ("FLUX.1-dev", "flux", "_1024", {}),
}
# Methods of other papers, by their file: on SD 2.0 and Pets, and on DiT-XL/2-512 and ImageNet-100.
LATER_METHODS = ("coredit", "toma", "tofu")


@dataclass(frozen=True)
class Published:
    """One number of the paper, by the columns of its file."""

    table: int
    backbone: str
    dataset: str
    task: str
    metric: str
    method: str
    setting_name: str
    setting: float
    value: float

    @property
    def kind(self) -> str:
        """Class of the compressor, or `none`."""
        return self.method.partition("[")[0].replace("-", "")

    @property
    def variant(self) -> str:
        """`SA+CA` of `ToMe[SA+CA]`."""
        return self.method.partition("[")[2].rstrip("]")

    @property
    def stem(self) -> str:
        """The method in names of configurations."""
        return f"frequency_kv_{self.variant}" if self.kind == "FrequencyKV" else stems().get(self.kind, self.kind)

    @property
    def entry(self) -> str:
        """Name of its configuration."""
        dit = "dit_" if self.backbone == "dit_xl_2_512" else ""
        return f"{self.dataset}_{dit}{self.stem}{'_generation' if self.task == 'generation' else ''}"

    @property
    def strength(self) -> tuple[str, float] | None:
        """Name and value of what the compressor is set to."""
        if self.variant.startswith("factor="):
            return "factor", float(self.variant.removeprefix("factor="))
        if self.kind == "FrequencyKV":
            return "ratio", self.setting
        return (self.setting_name, self.setting) if self.setting_name else None


@cache
def stems() -> dict[str, str]:
    """Return the file in `configs/compressors/` of every shipped compressor: `AveragePool` -> `average_pool`."""
    files = {path.stem.replace("_", ""): path.stem for path in (CONFIGS / "compressors").glob("*.yaml")}
    return {name: files[name.lower()] for name in methods()}


@cache
def published() -> list[Published]:
    """Return the accuracies and distances that the paper prints for methods of this suite."""
    rows = [
        Published(
            *(int(row["table"]), row["backbone"], row["dataset"], row["task"], row["metric"], row["method"]),
            *(row["setting_name"], float(row["setting"] or 0), float(row["value"])),
        )
        for row in printed()
    ]
    return [row for row in rows if row.kind in (*stems(), "none") and row.metric in ("acc1", "map", "fid")]


def compressor_of(stem: str, backbone: str, task: str) -> str | None:
    """Return the compressor's file for a network and task."""
    special = {
        ("iekvd", "sd2", "generation"): "iekvd_generation",
        ("iekvd", "shapes_dit", task): "iekvd_dit",
        ("iekvd", "shapes_flow", task): "iekvd_dit",
        ("sito", "sd2", task): "sito_paper",
        # Masks fit one network only.
        **{(pruner, model, task): f"{pruner}_{model}" for pruner in PRUNERS for _, model, _ in EMBEDDED.values()},
    }
    if stem == "none":
        return None
    if stem in LATER_METHODS and (stem, backbone) != ("tofu", "dit_xl_2_512"):
        return stem
    return f"dit_xl_{stem}" if backbone == "dit_xl_2_512" else special.get((stem, backbone, task), stem)


def description(stem: str, file: str | None) -> str:
    """Return method and settings: `, ToMe at ratio 0.5`."""
    if file is None:
        return " without compression"
    name, settings = DESCRIPTIONS.get(stem) or class_of(stem) or stem, init_args(file)
    if "cache" in settings:
        return f", {name} with {settings['cache']}"
    setting, value = strength_of(file)
    alpha = settings.get("alpha")
    if isinstance(alpha, dict):
        alpha = "from {start} to {end}".format(**alpha["init_args"])
    return f", {name} at {setting} {value:g}" + (f" and alpha {alpha}" if alpha is not None else "")


def class_of(stem: str) -> str | None:
    """Return the class of a method; None for `none` and for variants of a method."""
    return next((name for name, file in stems().items() if file == stem), None)


@cache
def init_args(file: str) -> dict[str, Any]:
    """Return the arguments of a compressor's file, of CAM those of the inner one."""
    content = yaml.safe_load((CONFIGS / "compressors" / f"{file}.yaml").read_text(encoding="utf-8"))["init_args"]
    inner: dict[str, Any] = content.get("inner", {"init_args": content})["init_args"]
    return inner


def strength_of(file: str) -> tuple[str, float]:
    """Return name and value of its ratio or factor."""
    return next((name, float(init_args(file)[name])) for name in ("ratio", "factor") if name in init_args(file))


def listed(items: Sequence[Any]) -> str:
    """Return `1, 2 and 4`."""
    words = [f"{item:g}" if isinstance(item, (int, float)) else str(item) for item in items]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def numbered(tables: Sequence[int]) -> str:
    """Return `Tables 2 and 4`."""
    return f"Table{'s' if len(tables) > 1 else ''} {listed(tables)}"


def comment(text: str) -> str:
    """Return text as a YAML comment."""
    lines = textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def entry(text: str, model: str, data: str, compressor: str | None, precision: str, devices: str | int) -> str:
    """Return an entry file."""
    path = f"compressors/{compressor}.yaml" if compressor else "null"
    if compressor and "masks" in init_args(compressor):
        text += f" Make the masks first: see {path}."
    return (
        f"{comment(text)}seed: 0\nmodel: models/{model}.yaml\ndata: data/{data}.yaml\ncompressor: {path}\n"
        f"trainer:\n  precision: {precision}\n  accelerator: auto\n  devices: {devices}\n"
    )


def other_entry(
    name: str, network: str, stem: str, task: str, model: str, data: str, file: str | None, precision: str = "16-true"
) -> tuple[str, str]:
    """Return name and content of a configuration that is not a cell of the paper; `name` begins with the dataset."""
    suffix, on = SUFFIXES[task], "generating for" if task == "generation" else "on"
    network = f"Features of {network}" if task == "features" else network
    text = f"{network} {on} {DATASETS[name.partition('_')[0]]}{description(stem, file)}: not a cell of the paper."
    return f"{name}{suffix}", entry(text, f"{model}{suffix}", data, file, precision, "auto")


def paper_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of the paper's cells."""
    groups: dict[str, list[Published]] = {}
    for row in published():
        groups.setdefault(row.entry, []).append(row)
    for name, rows in groups.items():
        row = rows[0]
        task = "_generation" if row.task == "generation" else ""
        model = "sd2_imagenet1k" if row.dataset == "imagenet1k" and not task else f"{MODELS[row.backbone]}{task}"
        data = f"{row.dataset}{task}" if row.dataset == "imagenet1k" else row.dataset
        file = compressor_of(row.stem, row.backbone, row.task)
        yield name, entry(paper_comment(rows), model, data, file, "16-true", "auto")
    low = next(row for row in published() if row.stem == "frequency_kv_low")
    remark = f"Table 12 has this cell on {DATASETS[low.dataset]} only, see {low.entry}.yaml."
    text = f"SD 2.0 on {DATASETS['pets']}{description(low.stem, low.stem)}. {remark}"
    yield "pets_frequency_kv", entry(text, "sd2", "pets", low.stem, "16-true", "auto")
    classified = {name: rows[0] for name, rows in groups.items() if rows[0].task == TASKS[0]}
    classified["pets_frequency_kv"] = replace(low, dataset="pets")
    for name, row in classified.items():
        if row.dataset == "imagenet1k":
            continue
        network, file = NETWORKS[row.backbone], compressor_of(row.stem, row.backbone, "generation")
        if f"{name}_generation" not in groups:
            yield other_entry(name, network, row.stem, "generation", MODELS[row.backbone], row.dataset, file)
        yield joint(name, f"{network} on {DATASETS[row.dataset]}, on both tasks{description(row.stem, file)}")


def further_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of networks and methods of other papers."""
    for prefix, (network, model, dataset, data) in OTHER_NETWORKS.items():
        for stem in ("none", "lgtm", "iekvd"):
            file = compressor_of(stem, "dit_xl_2_512" if prefix == "dit256" else "sd2", "generation")
            yield other_entry(f"{dataset}_{prefix}_{stem}", network, stem, "generation", model, data, file)
    for prefix, (network, model, size, files) in LATER_NETWORKS.items():
        for dataset, stem, task in product(("pets", "imagenet100"), ("none", "lgtm", "iekvd"), JOINT):
            file = files.get(stem) or compressor_of(stem, "sd2", task)
            name = f"{dataset}_{prefix}_{stem}"
            yield other_entry(name, network, stem, task, model, f"{dataset}{size}", file, "bf16-true")
    cache = "feature_cache"
    yield other_entry(f"pets_flux_{cache}", "FLUX.1-dev", cache, "generation", "flux", "pets_1024", cache, "bf16-true")
    targets = ("pets", "pets", "sd2"), ("imagenet100_dit", "imagenet100", "dit_xl_2_512")
    for stem, (prefix, dataset, backbone) in product(LATER_METHODS, targets):
        name, network = f"{prefix}_{stem}", NETWORKS[backbone]
        for task in JOINT:
            file = compressor_of(stem, backbone, task)
            yield other_entry(name, network, stem, task, MODELS[backbone], dataset, file)
        yield joint(name, f"{network} on {DATASETS[dataset]}, on both tasks{description(stem, file)}")
    targets = ("pets", "sd2", "sd2_pets"), ("imagenet100_dit", "dit_xl_2_512", "dit_xl_512")
    for (prefix, backbone, model), stem in product(targets, ("none", "lgtm", "iekvd")):
        name, network, dataset = f"{prefix}_{stem}", NETWORKS[backbone], prefix.removesuffix("_dit")
        file = compressor_of(stem, backbone, TASKS[0])
        yield other_entry(name, network, stem, "features", model, dataset, file)
        text = f"{network} on {DATASETS[dataset]}, on all three tasks{description(stem, file)}"
        yield joint(name, text, features=True)


def joint(name: str, text: str, features: bool = False) -> tuple[str, str]:
    """Return name and content of a configuration of both tasks, or of all three."""
    entries = "".join(f"{task}: {name}{SUFFIXES[task]}.yaml\n" for task in (TASKS if features else JOINT))
    return f"{name}{'_features' if features else ''}_joint", comment(f"{text}; for `bigain evaluate`.") + entries


def paper_comment(rows: Sequence[Published]) -> str:
    """Return tables and numbers of a configuration, and options for the paper's other settings."""
    row = rows[0]
    file = compressor_of(row.stem, row.backbone, row.task)
    default = strength_of(file) if file else None
    exact = [r for r in rows if r.strength == default and (r.table != 6 or r.variant == "SA")]
    values: dict[float, list[int]] = {}
    for r in exact:
        if r.metric != "map":
            values.setdefault(r.value, []).append(r.table)
    if row.task == "generation":
        distinct = [
            f"{value:g} ({numbered(tables)})" if len(values) > 1 else f"{value:g}" for value, tables in values.items()
        ]
        numbers = f"FID by pytorch-fid {listed(distinct)}"
    else:
        numbers = f"{listed(list(values))} % top-1"
        numbers += "".join(f", mAP {r.value:g}" for r in exact[-1:] if r.metric == "map")
    on = "generating for" if row.task == "generation" else "on"
    size = " (2,000 images)" if (row.dataset, row.task) == ("imagenet1k", "classification") else ""
    text = f"{NETWORKS[row.backbone]} {on} {DATASETS[row.dataset]}{size}{description(row.stem, file)}: "
    text += f"{numbered(sorted({r.table for r in exact}))}. Paper: {numbers}."
    strengths, inner = sorted({r.strength[1] for r in rows if r.strength}), ".inner" if row.stem == "cam" else ""
    if default and len(strengths) > 1:
        option = f"--compressor{inner}.{default[0]}"
        text += f" The paper has {default[0]}s {strengths[0]:g} to {strengths[-1]:g}: {option} {strengths[-1]:g}."
    released = {"LGTM": "released", "CAM": "released"} | ({"ToMe": "redrawn"} if row.task == TASKS[0] else {})
    if row.kind in released:
        text += f" The paper's code: --compressor{inner}.destination {released[row.kind]}."
    if any(r.table == 6 for r in rows):
        text += " Table 6: --compressor.modules '[self_attn, cross_attn]'."
    return text


def embedded_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of the embedded models."""
    for family, (network, model, minutes) in EMBEDDED.items():
        for stem in ("none", *stems().values()):
            name = f"{family}_{stem}"
            file = compressor_of(stem, model, "classification")
            time = "" if file is None else f": {minutes} on two CPU cores"
            text = f"Embedded {network} on ShapeTextures{description(stem, file)}{time}."
            classifies = stem == "none" or not methods()[class_of(stem) or ""].generation_only
            if classifies:
                yield name, entry(text, model, "shapes", file, "32-true", 1)
            text = f"500 samples of the embedded {network}{description(stem, file)}."
            generating = entry(text, f"{model}_generation", "shapes_generation", file, "32-true", 1)
            yield f"{name}_generation", generating
            if not classifies:
                continue
            yield joint(name, f"The embedded {network} on both tasks{description(stem, file)}")
            if family != "demo_flow":
                text = f"Features of the embedded {network} on ShapeTextures{description(stem, file)}."
                features = entry(text, f"{model}_features", "shapes_features", file, "32-true", 1)
                yield f"{name}_features", features
                text = f"Embedded {network} on ShapeTextures, on all three tasks{description(stem, file)}"
                yield joint(name, text, features=True)


def outputs() -> dict[Path, str]:
    """Return the content of every file that this script writes, by its path."""
    entries = {
        f"{name}.yaml": text for write in (paper_entries, further_entries, embedded_entries) for name, text in write()
    }
    return {CONFIGS / name: text for name, text in entries.items()}


def main() -> None:
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
