"""Write the entry files of `configs/`, the tables of `configs/tables/`, and `docs/configurations.md`.

    python scripts/write_configs.py

Entries and tables of the paper follow its published cells (`bigain/report/paper_results.csv`); those of the embedded
models follow the shipped compressors. Only the parts in `configs/{models,data,compressors}` are written by hand.
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
    "demo": ("DiT", "shapes_dit", "about a minute"),
    "demo_unet": ("U-Net", "shapes_unet", "a few minutes"),
    "demo_flow": ("flow-matching DiT", "shapes_flow", "about a minute"),
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
# The tasks of the paper.
JOINT = TASKS[:2]
# Families with configurations for features, with the model's part and the data: of real models a few methods only.
PROBED = {"pets": ("sd2_pets", "pets"), "imagenet100_dit": ("dit_xl_512", "imagenet100")}
PROBED |= {"demo": ("shapes_dit", "shapes_features"), "demo_unet": ("shapes_unet", "shapes_features")}
PRUNERS = ("dipgo", "mosaicdiff")
MODULES = {"SA": "self_attn", "CA": "cross_attn", "MLP": "mlp"}
# Networks that are not in the paper, by their part of the name: in words; model, dataset and data of a generation.
OTHER_NETWORKS = {
    "sd15": ("SD 1.5", "sd15", "pets", "pets"),
    "sd21": ("SD 2.1", "sd21", "pets", "pets"),
    "dit256": ("DiT-XL/2-256", "dit_xl_256", "imagenet100", "imagenet100_256"),
}
# Networks after the paper: in words; model; ending of the data of their image size; files of compressors.
LATER_NETWORKS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "pixart": ("PixArt-alpha-512", "pixart_512", "", {"iekvd": "iekvd_dit"}),
    "sdxl": ("SDXL", "sdxl", "_1024", {}),
    "sd3": ("SD 3 medium", "sd3", "_1024", {}),
    "flux": ("FLUX.1-dev", "flux", "_1024", {}),
}
# Methods of other papers, by their file: on SD 2.0 and Pets, and on DiT-XL/2-512 and ImageNet-100.
LATER_METHODS = ("coredit", "toma", "tofu")

PAPER_TABLES = {
    1: "Table 1: methods on Oxford-IIIT Pets, each at one setting that the table does not print. DiP-GO and "
    "MosaicDiff, at the ratio with the table's 10 % of FLOPs, need files of masks that are made first: see "
    "compressors/dipgo.yaml and compressors/mosaicdiff.yaml. Known: the 14.2 % FLOPs of ToDo and BiGain_TD are factor "
    "8 (14.17 %), their accuracies factor 3 (12.84 %); SiTo's 7 % is ratio 0.7; BiGain_TD is 79.90 here and 79.91 in "
    "Table 2.",
    2: "Table 2: downsampling of keys and values on SD 2.0, by factor. Known: BiGain_TD at factor 3 is 79.91 on Pets "
    "here and 79.90 in Table 1; the ImageNet-100 generation baseline is 17.64 here and 41.37 in Table 4.",
    3: "Table 3: downsampling of keys and values on DiT-XL/2-512, by factor. Known: the FID without compression is "
    "41.37 here and 47.53 in Table 5.",
    4: "Table 4: token merging on SD 2.0, by ratio. Known: the ImageNet-100 generation baseline is 41.37 here and "
    "17.64 in Table 2. One standard error is 0.65 points on Pets and 1.1 points on the 2,000 images of ImageNet-1K: "
    "several printed gains are within it.",
    5: "Table 5: token merging on DiT-XL/2-512, by ratio. Known: its FIDs repeat Table 4's rows of SD 2.0; the FID "
    "without compression is 47.53 here and 41.37 in Table 3.",
    6: "Table 6: which modules of a block see merged tokens, on Oxford-IIIT Pets, by ratio. The [SA] rows repeat Table "
    "4. Known: one standard error is 0.65 points, and several printed differences are within it.",
    8: "Table 8: LGTM beside CAM and ABM on SD 2.0, by ratio. The LGTM rows repeat Table 4. Known: one standard error "
    "is 0.65 points on Pets and 1.1 points on the 2,000 images of ImageNet-1K: several printed differences are within "
    "it.",
    12: "Table 12: which quarter of the keys to keep, on ImageNet-100. The paper prints the share removed, 0.75.",
}
CODE = " The rows `redrawn` and `released` run what the paper's code does, which produced the numbers. LGTM's other "
CODE += "row is the paper's text; ToMe's other row draws alike for all classes."
MIXED = " The mAP of COCO ranks means of 5 trials among means of 20: compare it with `map_released`."
PAPER_TABLES = {
    number: text + (CODE if number in (1, 4, 5, 6, 8) else "") + (MIXED if number in (2, 4, 8) else "")
    for number, text in PAPER_TABLES.items()
}
NO_TABLE = "Not a table of the paper."
SAME_CELLS = "LGTM with random, first and redrawn destinations computes what ToMe does, so those cells are listed once."
EMBEDDED_TABLES = {
    family: f"The embedded {network} on ShapeTextures, on both tasks: mergers at three ratios, downsampling at two "
    f"factors. {NO_TABLE}"
    for family, (network, _, _) in EMBEDDED.items()
} | {
    "embedded": "Every method on the embedded DiT in classification: mergers with every destination at three ratios "
    "and downsampling of keys at two factors on 512 images, CAM, ABM and the other ratios of SiTo on 128. "
    f"{NO_TABLE} {SAME_CELLS}",
    "embedded_pairs": "The comparisons of `embedded` whose intervals are wider than +- 3 points on 512 images: mergers "
    f"with every destination at ratio 0.7 on 1,024 images, downsampling of keys on 768. {NO_TABLE}",
    "embedded_grid": "The full grid on the embedded DiT: ratios 0.1 to 0.7, factors 2 to 8, the scores of Table 13 and "
    f"the modules of Table 6. {NO_TABLE} Hours on a CPU.",
    "embedded_unet": "Methods on the embedded U-Net in classification, 512 images: mergers with every destination at "
    "three ratios, and downsampling of keys at two factors. At all strides, since compression at stride 1 alone does "
    f"not change its accuracy. {NO_TABLE} {SAME_CELLS}",
    "embedded_flow": "Methods on the embedded flow-matching DiT in classification, 512 images: mergers at ratio 0.7, "
    f"keys by 4; six trials of every class, so that `bigain explain --weights` gives the other errors. {NO_TABLE}",
    "embedded_features": "Features of the embedded DiT by methods, at three ratios or two factors, 512 images: linear "
    f"probe, nearest neighbours, similarity to the features without compression. {NO_TABLE}",
    "embedded_unet_features": f"As `embedded_features`, on the embedded U-Net at all strides. {NO_TABLE}",
    "embedded_unet_pairs": "The comparison of `embedded_unet` whose interval is wider than +- 3 points on 512 images: "
    f"average pooling and nearest sampling of keys by 4, on 1,536 images. {NO_TABLE}",
}
FURTHER_TABLES = {
    "table7": "Table 7: LGTM, ten scores at three ratios on Oxford-IIIT Pets. The paper does not print its numbers.",
    "table11": "Table 11: seconds and GFLOPs of methods at ratio 0.7, 50 steps on SD 2.0 in batches of 4, without the "
    "VAE. Ten batches on one GPU. The report shows the paper's seconds, on RTX 4090. Known: its FLOPs are of batch 1.",
    "alpha": "IE-KVD by alpha, from average pooling (0) through nearest (1) to 1.4, on both tasks of Oxford-IIIT Pets "
    f"at factor 2. {NO_TABLE}",
    "alpha_dit": f"As `alpha`, on DiT-XL/2-512 and ImageNet-100. {NO_TABLE}",
    "blocks": "Ranges of blocks of DiT-XL/2-512, counted from 1, on both tasks of ImageNet-100: the first six against "
    f"the next six, the first twelve of the paper's text, and the ten of its code. {NO_TABLE}",
    "embedded_table7": f"As `table7`, on the embedded DiT and 128 images. {NO_TABLE}",
    "embedded_table11": f"As `table11`, on the embedded DiT: 16 batches of 25 steps. {NO_TABLE}",
    "embedded_alpha": f"As `alpha`, on the embedded DiT at factor 4, 256 images. {NO_TABLE}",
    "embedded_unet_alpha": "As `alpha`, on the embedded U-Net at factor 4 and all strides, 256 images, six trials "
    f"and 25 steps. {NO_TABLE}",
    "embedded_blocks": "The first two of the four blocks of the embedded DiT against the last two and all, on both "
    f"tasks, 256 images. {NO_TABLE}",
}
# With the paper's 0.1 and 0.9.
ALPHAS, FEW_ALPHAS = [0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1, 1.2, 1.4], [0, 0.5, 0.9, 1, 1.4]
RATIOS, FACTORS = [0.3, 0.5, 0.7], [2, 4]
# 52 evaluations per image rather than 155, and half the steps.
QUICK = {TASKS[0]: {"model.trials": [2, 6]}, TASKS[1]: {"model.steps": 25}}
ALL_CLASSES = {"model.trials": [6], "model.keep": None}
ALL_RATIOS, ALL_FACTORS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [2, 3, 4, 5, 6, 7, 8]
MERGERS = (("ToMe", "random"), ("LGTM", "cell"), ("LGTM", "released"), ("ToMe", "first"), ("ToMe", "redrawn"))
ALL_MERGERS = (
    *(("ToMe", name) for name in ("random", "first", "redrawn")),
    *(("LGTM", name) for name in ("cell", "released", "first", "random", "redrawn")),
)
KEYS = ("ToDo", "AveragePool", "IEKVD")
SCORES = ("laplacian_l2", "l1_norm", "l2_norm", "channel_variance", "global_mean_deviation", "dft_amplitude")
SCORES += ("dft_centroid", "neighbour_cosine", "global_mean_cosine")


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
    def base(self) -> str:
        """Class of the compressor, or `none`."""
        return self.method.partition("[")[0].replace("-", "")

    @property
    def inside(self) -> str:
        """`SA+CA` of `ToMe[SA+CA]`."""
        return self.method.partition("[")[2].rstrip("]")

    @property
    def stem(self) -> str:
        """The method in names of configurations."""
        return f"frequency_kv_{self.inside}" if self.base == "FrequencyKV" else stems().get(self.base, self.base)

    @property
    def entry(self) -> str:
        """Name of its configuration."""
        dit = "dit_" if self.backbone == "dit_xl_2_512" else ""
        return f"{self.dataset}_{dit}{self.stem}{'_generation' if self.task == 'generation' else ''}"

    @property
    def strength(self) -> tuple[str, float] | None:
        """Name and value of what the compressor is set to."""
        if self.inside.startswith("factor="):
            return "factor", float(self.inside.removeprefix("factor="))
        if self.base == "FrequencyKV":
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
    return [row for row in rows if row.base in (*stems(), "none") and row.metric in ("acc1", "map", "fid")]


def compressor_of(stem: str, backbone: str, task: str) -> str | None:
    """Return the compressor's file for a network and task."""
    special = {
        ("iekvd", "sd2", "generation"): "iekvd_generation",
        ("iekvd", "shapes_dit", task): "iekvd_dit",
        ("iekvd", "shapes_flow", task): "iekvd_dit",
        ("sito", "sd2", task): "sito_paper",
        # Masks are those of one network.
        **{(pruner, model, task): f"{pruner}_{model}" for pruner in PRUNERS for _, model, _ in EMBEDDED.values()},
    }
    if stem == "none":
        return None
    if stem in LATER_METHODS and (stem, backbone) != ("tofu", "dit_xl_2_512"):
        return stem
    return f"dit_xl_{stem}" if backbone == "dit_xl_2_512" else special.get((stem, backbone, task), stem)


def described(stem: str, file: str | None) -> str:
    """Return method and settings: `, ToMe at ratio 0.5`."""
    if file is None:
        return " without compression"
    name, settings = method_name(stem), init_args(file)
    if "cache" in settings:
        return f", {name} with {settings['cache']}"
    setting, value = strength_of(file)
    alpha = settings.get("alpha")
    if isinstance(alpha, dict):
        alpha = "from {start} to {end}".format(**alpha["init_args"])
    return f", {name} at {setting} {value:g}" + (f" and alpha {alpha}" if alpha is not None else "")


def method_name(stem: str) -> str:
    """Return the name of a method for readers."""
    return DESCRIPTIONS.get(stem) or class_of(stem) or stem


def class_of(stem: str) -> str | None:
    """Return the class of a method; None for `none` and for variants of a method."""
    return next((name for name, known in stems().items() if known == stem), None)


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
    named = f"compressors/{compressor}.yaml" if compressor else "null"
    if compressor and "masks" in init_args(compressor):
        text += f" Make the masks first: see {named}."
    return (
        f"{comment(text)}seed: 0\nmodel: models/{model}.yaml\ndata: data/{data}.yaml\ncompressor: {named}\n"
        f"trainer:\n  precision: {precision}\n  accelerator: auto\n  devices: {devices}\n"
    )


def paper_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of the paper's cells."""
    groups: dict[str, list[Published]] = {}
    for row in published():
        groups.setdefault(row.entry, []).append(row)
    for name, rows in groups.items():
        yield name, paper_entry(rows[0], paper_comment(rows))
    low = next(row for row in published() if row.stem == "frequency_kv_low")
    only = f"Table 12 has this cell on {DATASETS[low.dataset]} only, see {low.entry}.yaml."
    text = f"SD 2.0 on {DATASETS['pets']}{described(low.stem, low.stem)}. {only}"
    yield "pets_frequency_kv", entry(text, "sd2", "pets", low.stem, "16-true", "auto")
    classified = {name: rows[0] for name, rows in groups.items() if rows[0].task == TASKS[0]}
    classified["pets_frequency_kv"] = replace(low, dataset="pets")
    for name, row in classified.items():
        if row.dataset == "imagenet1k":
            continue
        network, of = NETWORKS[row.backbone], DATASETS[row.dataset]
        method = described(row.stem, compressor_of(row.stem, row.backbone, "generation"))
        if f"{name}_generation" not in groups:
            text = f"{network} generating for {of}{method}: not a cell of the paper."
            yield f"{name}_generation", paper_entry(replace(row, task="generation"), text)
        yield joint(name, f"{network} on {of}, on both tasks{method}")
    for part, (network, model, dataset, data) in OTHER_NETWORKS.items():
        for stem in ("none", "lgtm", "iekvd"):
            file = compressor_of(stem, "dit_xl_2_512" if part == "dit256" else "sd2", "generation")
            text = f"{network} generating for {DATASETS[dataset]}{described(stem, file)}: not a cell of the paper."
            name = f"{dataset}_{part}_{stem}_generation"
            yield name, entry(text, f"{model}_generation", data, file, "16-true", "auto")


def later_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of networks after the paper."""
    for part, (network, model, size, files) in LATER_NETWORKS.items():
        for dataset, stem, task in product(("pets", "imagenet100"), ("none", "lgtm", "iekvd"), JOINT):
            end, on = ("_generation", "generating for") if task == "generation" else ("", "on")
            file = files.get(stem) or compressor_of(stem, "sd2", task)
            text = f"{network} {on} {DATASETS[dataset]}{described(stem, file)}: not a cell of the paper."
            content = entry(text, f"{model}{end}", f"{dataset}{size}", file, "bf16-true", "auto")
            yield f"{dataset}_{part}_{stem}{end}", content
    text = f"FLUX.1-dev generating for {DATASETS['pets']}{described('feature_cache', 'feature_cache')}: not a cell of "
    content = entry(f"{text}the paper.", "flux_generation", "pets_1024", "feature_cache", "bf16-true", "auto")
    yield "pets_flux_feature_cache_generation", content


def later_method_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of methods of other papers."""
    places = ("pets", "pets", "sd2"), ("imagenet100_dit", "imagenet100", "dit_xl_2_512")
    for stem, (part, dataset, backbone) in product(LATER_METHODS, places):
        name, network, of = f"{part}_{stem}", NETWORKS[backbone], DATASETS[dataset]
        for task, end, on in ((TASKS[0], "", "on"), (TASKS[1], "_generation", "generating for")):
            file = compressor_of(stem, backbone, task)
            text = f"{network} {on} {of}{described(stem, file)}: not a cell of the paper."
            yield f"{name}{end}", entry(text, f"{MODELS[backbone]}{end}", dataset, file, "16-true", "auto")
        yield joint(name, f"{network} on {of}, on both tasks{described(stem, file)}")


def joint(name: str, text: str) -> tuple[str, str]:
    """Return name and content of a configuration of both tasks."""
    content = f"classification: {name}.yaml\ngeneration: {name}_generation.yaml\n"
    return f"{name}_joint", comment(f"{text}; for `bigain evaluate`.") + content


def feature_entries() -> Iterator[tuple[str, str]]:
    """Yield name and content of the configurations of features, and of those of all three tasks."""
    for family, (model, data) in PROBED.items():
        embedded = family in EMBEDDED
        network = f"Embedded {EMBEDDED[family][0]}" if embedded else NETWORKS[backbone_of(family)]
        on = "ShapeTextures" if embedded else DATASETS[data]
        classifying = [stem for name, stem in stems().items() if not methods()[name].generation_only]
        for stem in ("none", *classifying) if embedded else ("none", "lgtm", "iekvd"):
            name = f"{family}_{stem}"
            file = compressor_of(stem, model if embedded else backbone_of(family), TASKS[0])
            text = f"Features of the {network[:1].lower()}{network[1:]}" if embedded else f"Features of {network}"
            text += f" on {on}{described(stem, file)}" + ("." if embedded else ": not a cell of the paper.")
            precision, devices = ("bf16-true", 1) if embedded else ("16-true", "auto")
            yield f"{name}_features", entry(text, f"{model}_features", data, file, precision, devices)
            joint_name, content = joint(name, f"{network} on {on}, on all three tasks{described(stem, file)}")
            yield joint_name.replace("_joint", "_features_joint"), f"{content}features: {name}_features.yaml\n"


def backbone_of(family: str) -> str:
    """Return the network of the paper behind a family of configurations."""
    return "dit_xl_2_512" if family.endswith("_dit") else "sd2"


def paper_entry(row: Published, text: str) -> str:
    """Return the configuration of a cell of the paper."""
    task = "_generation" if row.task == "generation" else ""
    model = "sd2_imagenet1k" if row.dataset == "imagenet1k" and not task else f"{MODELS[row.backbone]}{task}"
    data = f"{row.dataset}{task}" if row.dataset == "imagenet1k" else row.dataset
    return entry(text, model, data, compressor_of(row.stem, row.backbone, row.task), "16-true", "auto")


def paper_comment(rows: Sequence[Published]) -> str:
    """Return tables and numbers of a configuration, and options for the paper's other settings."""
    row = rows[0]
    file = compressor_of(row.stem, row.backbone, row.task)
    usual = strength_of(file) if file else None
    exact = [r for r in rows if r.strength == usual and (r.table != 6 or r.inside == "SA")]
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
    text = f"{NETWORKS[row.backbone]} {on} {DATASETS[row.dataset]}{size}{described(row.stem, file)}: "
    text += f"{numbered(sorted({r.table for r in exact}))}. Paper: {numbers}."
    others, inner = sorted({r.strength[1] for r in rows if r.strength}), ".inner" if row.stem == "cam" else ""
    if usual and len(others) > 1:
        option = f"--compressor{inner}.{usual[0]}"
        text += f" The paper has {usual[0]}s {others[0]:g} to {others[-1]:g}: {option} {others[-1]:g}."
    of_code = [name for name in destinations(row) if name]
    text += "".join(f" The paper's code: --compressor{inner}.destination {name}." for name in of_code)
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
            text = f"Embedded {network} on ShapeTextures{described(stem, file)}{time}."
            classifies = stem == "none" or not methods()[class_of(stem) or ""].generation_only
            if classifies:
                yield name, entry(text, model, "shapes", file, "bf16-true", 1)
            text = f"500 samples of the embedded {network}{described(stem, file)}."
            generating = entry(text, f"{model}_generation", "shapes_generation", file, "bf16-true", 1)
            yield f"{name}_generation", generating
            if classifies:
                yield joint(name, f"The embedded {network} on both tasks{described(stem, file)}")


def destinations(row: Published) -> dict[str, str | None]:
    """Return the destinations of a method's rows by what their names add: ours, and that of the paper's code."""
    if row.base == "ToMe" and row.task == "classification":
        return {"": "random", "redrawn": "redrawn"}
    return {"": "cell", "released": "released"} if row.base in ("LGTM", "CAM") else {"": None}


def paper_table(number: int) -> str:
    """Return a table of the paper as the runs of a sweep."""
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for row in sorted(published(), key=lambda row: TASKS.index(row.task)):
        if row.table == number and row.metric != "map":
            groups.setdefault((row.task, row.dataset, row.method), []).append(row)
    runs = []
    for (task, dataset, method), rows in groups.items():
        row = rows[0]
        fixed: dict[str, Any] = {}
        further: dict[str, Any] = {}
        place = f"compressor.{'inner.' if row.stem == 'cam' else ''}"
        if number == 6:
            fixed = {"compressor.modules": [MODULES[word] for word in row.inside.split("+")]}
        if row.strength is not None and number in (1, 12):
            fixed = {place + row.strength[0]: number_of(row.strength[1])}
            further = {"setting": {row.setting_name: row.setting}} if number == 12 else {}
        elif row.strength is not None:
            further = {"vary": {place + row.strength[0]: [number_of(r.setting) for r in rows]}}
        for name, destination in destinations(row).items():
            named = f"{method.removesuffix(']')}{'; ' if row.inside else '['}{name}]" if name else method
            set_ = fixed | ({f"{place}destination": destination} if destination else {})
            run = {"config": f"{row.entry}.yaml", "task": task, "dataset": dataset, "method": named}
            runs.append(run | ({"set": set_} if set_ else {}) | further)
    return table_file(PAPER_TABLES[number], published_backbone(number), runs, number)


def published_backbone(number: int) -> str:
    """Return the network of a table."""
    return next(row.backbone for row in published() if row.table == number)


def number_of(value: float) -> int | float:
    """Return 2 for 2.0."""
    return int(value) if value == int(value) else value


def table_file(text: str, backbone: str, runs: Sequence[dict[str, Any]], number: int | None = None) -> str:
    """Return a table file; classification is the default task."""
    lines = [f"table: {number}\n"] if number is not None else []
    lines.append(f"backbone: {backbone}\nruns:\n")
    for run in runs:
        shown = {key: value for key, value in run.items() if (key, value) != ("task", TASKS[0])}
        block = "".join(f"  {key}: {flow(value)}\n" for key, value in shown.items())
        lines.append(f"- {block.removeprefix('  ')}")
    return comment(text) + "".join(lines)


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()


def embedded_tables() -> Iterator[tuple[str, str]]:
    """Yield name and content of the tables of the embedded models."""
    for family, (_, model, _) in EMBEDDED.items():
        yield family, table_file(EMBEDDED_TABLES[family], model, [run for task in JOINT for run in demo(family, task)])
    variants = [("LGTM", score, {"compressor.score": f"bigain.tokens.scores.{score}"}) for score in SCORES]
    variants += [("LGTM", "sa-mlp", {"compressor.modules": ["self_attn", "mlp"]})]
    variants += [("LGTM", "mlp", {"compressor.modules": ["mlp"]})]
    some = {"data.images": 512}
    everywhere = {**some, "compressor.where.max_stride": 4}
    dit = {
        "embedded": [
            cell("demo", "none", some),
            *mergers("demo", RATIOS, some),
            *(cell("demo", method, some, FACTORS) for method in KEYS),
            cell("demo", "SiTo", {**some, "compressor.ratio": 0.5}) | {"setting": {"ratio": 0.5}},
            cell("demo", "SiTo", vary=[0.3, 0.7]),
            *(cell("demo", method, vary=RATIOS) for method in ("CAM", "ABM")),
        ],
        "embedded_pairs": [
            *mergers("demo", [0.7], {"data.images": 1024}),
            *(cell("demo", method, {"data.images": 768}, FACTORS) for method in KEYS),
        ],
        "embedded_grid": [
            cell("demo", "none"),
            *mergers("demo", ALL_RATIOS, {}, ALL_MERGERS),
            *(cell("demo", method, fixed, ALL_RATIOS, name) for method, name, fixed in variants),
            *(cell("demo", method, vary=ALL_RATIOS) for method in ("CAM", "ABM", "SiTo")),
            *(cell("demo", method, vary=ALL_FACTORS) for method in KEYS),
        ],
    }
    unet = {
        "embedded_unet": [
            cell("demo_unet", "none", some),
            *mergers("demo_unet", RATIOS, everywhere),
            *(cell("demo_unet", method, everywhere, FACTORS) for method in KEYS),
            cell("demo_unet", "SiTo", everywhere, [0.5]),
        ],
        "embedded_unet_pairs": [
            cell("demo_unet", method, {**everywhere, "data.images": 1536}, [4]) for method in ("ToDo", "AveragePool")
        ],
    }
    flows = {
        "embedded_flow": [
            cell("demo_flow", method, {**some, **ALL_CLASSES, **strength})
            for method, strength in (
                ("none", {}),
                *((method, {"compressor.ratio": 0.7}) for method in ("ToMe", "LGTM", "SiTo")),
                *((method, {"compressor.factor": 4}) for method in KEYS),
            )
        ]
    }
    for name, family, fixed in (
        ("embedded_features", "demo", {}),
        ("embedded_unet_features", "demo_unet", {"compressor.where.max_stride": 4}),
    ):
        runs = [cell(family, "none", task="features")]
        runs += [cell(family, method, fixed, RATIOS, task="features") for method in ("ToMe", "LGTM", "SiTo")]
        runs += [cell(family, method, fixed, FACTORS, task="features") for method in KEYS]
        yield name, table_file(EMBEDDED_TABLES[name], EMBEDDED[family][1], runs)
    for model, tables in (("shapes_dit", dit), ("shapes_unet", unet), ("shapes_flow", flows)):
        for name, runs in tables.items():
            yield name, table_file(EMBEDDED_TABLES[name], model, runs)


def further_tables() -> Iterator[tuple[str, str]]:
    """Yield name and content of the tables whose cells the paper does not print, each with one of an embedded model."""
    some = {"data.images": 256}
    everywhere = {**some, "compressor.where.max_stride": 4}
    halves = {"1-6": list(range(6)), "7-12": list(range(6, 12)), "first-12": "first_12", "released": "released"}
    quarters = {"1-2": [0, 1], "3-4": [2, 3], "all": [0, 1, 2, 3]}
    batches = {"data.batch_size": 4, "model.items_per_forward": 4, "model.extractor": None, "trainer.devices": 1}
    tables = {
        "table7": ("sd2", scores("pets")),
        "embedded_table7": ("shapes_dit", scores("demo")),
        "table11": ("sd2", speeds("pets", {"data.limit": 40, **batches})),
        "embedded_table11": ("shapes_dit", speeds("demo", {"data.images": 64, **batches})),
        "alpha": ("sd2", alphas("pets", {}, {"compressor.factor": 2})),
        "alpha_dit": ("dit_xl_2_512", alphas("imagenet100_dit", {}, {"compressor.factor": 2})),
        "embedded_alpha": ("shapes_dit", alphas("demo", some, {**some, "compressor.factor": 4})),
        "embedded_unet_alpha": ("shapes_unet", alphas("demo_unet", some, {**everywhere, "compressor.factor": 4})),
        "blocks": ("dit_xl_2_512", blocks("imagenet100_dit", {}, halves, 2)),
        "embedded_blocks": ("shapes_dit", blocks("demo", some, quarters, 4)),
    }
    for name, (backbone, runs) in tables.items():
        number = int(name.removeprefix("table")) if name.startswith("table") else None
        yield name, table_file(FURTHER_TABLES[name], backbone, list(runs), number)


def scores(family: str) -> Iterator[dict[str, Any]]:
    """Yield LGTM with each score."""
    yield cell(family, "none")
    for score in ("laplacian_l1", *SCORES):
        yield cell(family, "LGTM", {"compressor.score": f"bigain.tokens.scores.{score}"}, RATIOS, score)


def speeds(family: str, fixed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield generations at ratio 0.7."""
    yield cell(family, "none", fixed, task="generation")
    for method in ("SiTo", "ToMe", "LGTM", "CAM", "ABM"):
        yield cell(family, method, fixed, [0.7], task="generation")


def alphas(family: str, plain: dict[str, Any], fixed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield IE-KVD with every alpha."""
    values = FEW_ALPHAS if family in EMBEDDED else ALPHAS
    for task in JOINT:
        quick = QUICK[task] if family == "demo_unet" else {}
        yield cell(family, "none", {**plain, **quick}, task=task)
        yield cell(family, "IEKVD", {**fixed, **quick}, task=task) | {"vary": {"compressor.alpha": values}}


def blocks(family: str, fixed: dict[str, Any], ranges: dict[str, Any], factor: int) -> Iterator[dict[str, Any]]:
    """Yield a merger and a downsampler on each range of blocks."""
    for task in JOINT:
        yield cell(family, "none", fixed, task=task)
        for method, strength in (("LGTM", 0.7), ("IEKVD", factor)):
            for name, chosen in ranges.items():
                yield cell(family, method, {**fixed, "compressor.where.blocks": chosen}, [strength], name, task)


def demo(family: str, task: str) -> Iterator[dict[str, Any]]:
    """Yield the runs of one task in `demo` and `demo_unet`."""
    yield cell(family, "none", task=task)
    yield from (cell(family, method, vary=RATIOS, task=task) for method in ("ToMe", "LGTM"))
    yield from (cell(family, method, vary=FACTORS, task=task) for method in KEYS)


def mergers(
    family: str, ratios: Sequence[float], fixed: dict[str, Any], destinations: Sequence[tuple[str, str]] = MERGERS
) -> list[dict[str, Any]]:
    """Return a run per merger and destination."""
    return [
        cell(family, method, {**fixed, "compressor.destination": destination}, ratios, destination)
        for method, destination in destinations
    ]


def cell(
    family: str,
    method: str,
    fixed: dict[str, Any] | None = None,
    vary: Sequence[float] = (),
    variant: str = "",
    task: str = TASKS[0],
) -> dict[str, Any]:
    """Return the runs of a method on a model and dataset, one per value of its ratio or factor."""
    stem = stems().get(method, method)
    name = f"{family}_{stem}{f'_{task}' if task != TASKS[0] else ''}.yaml"
    dataset = "shapes" if family in EMBEDDED else family.removesuffix("_dit")
    run = {"config": name, "task": task, "dataset": dataset, "method": f"{method}-{variant}" if variant else method}
    run |= {"set": fixed} if fixed else {}
    if vary:
        setting = strength_of(stem)[0]
        run["vary"] = {f"compressor.{'inner.init_args.' if stem == 'cam' else ''}{setting}": list(vary)}
    return run


def outputs() -> dict[Path, str]:
    """Return the content of every file that this script writes, by its path."""
    entries = {
        f"{name}.yaml": text
        for kind in (paper_entries, later_entries, later_method_entries, embedded_entries, feature_entries)
        for name, text in kind()
    }
    # Written by hand; listed with the others.
    entries["as_released.yaml"] = (CONFIGS / "as_released.yaml").read_text(encoding="utf-8")
    files = {CONFIGS / name: text for name, text in entries.items()}
    tables = [(f"table{number}", paper_table(number)) for number in PAPER_TABLES]
    tables += [*embedded_tables(), *further_tables()]
    files |= {CONFIGS / "tables" / f"{name}.yaml": text for name, text in tables}
    lines = [
        "# Configurations and the paper's cells\n",
        "One entry file per line, with its comment: `bigain predict --config <file>`; `*_joint.yaml` are for\n"
        "`bigain evaluate`. `tables/` has all cells of each table, for `bigain sweep`.\n",
        "| file | content |\n|---|---|",
    ]
    for name, text in sorted(entries.items()):
        header = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        lines.append(f"| `{name}` | {header} |")
    return files | {ROOT / "docs/configurations.md": "\n".join(lines) + "\n"}


def main() -> None:
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
