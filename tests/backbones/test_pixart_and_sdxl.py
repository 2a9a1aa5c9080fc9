"""PixArt and Stable Diffusion XL: called as their pipelines call them, and refused where a part does not fit."""

import json

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, SanaTransformer2DModel, StableDiffusionXLPipeline
from models import PROMPT_TOKENS, loaded, on_meta, save_dit, save_pixart, save_sdxl, snapshot
from safetensors.torch import load_file
from transformers import T5EncoderModel

from bigain.backbones import DiT, PixArt, StableDiffusionXL
from bigain.backbones.geometry import backbone_without_weights
from bigain.backbones.inspection import inspect_model
from bigain.backbones.sites import layout_of
from bigain.compressors import CAM, IEKVD, LGTM
from bigain.errors import InputError

KINDS = {"alpha": PixArt, "sigma": PixArt, "sdxl": StableDiffusionXL}
PIPELINES = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline, "sdxl": StableDiffusionXLPipeline}
OPTIONS = {"use_resolution_binning": False, "clean_caption": False}
every_model = pytest.mark.parametrize("model", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        # At this size, PixArt-alpha takes the size of images, too.
        "alpha": save_pixart(root / "alpha", sample_size=128),
        "sigma": save_pixart(root / "sigma", "PixArtSigmaPipeline"),
        "sdxl": save_sdxl(root / "sdxl"),
    }


@pytest.fixture(scope="module")
def backbones(folders):
    return {model: loaded(KINDS[model], folder) for model, folder in folders.items()}


@every_model
def test_networks_are_called_as_by_the_pipelines(folders, backbones, model):
    pipe, backbone = PIPELINES[model].from_pretrained(folders[model]), backbones[model]
    pipe.set_progress_bar_config(disable=True)
    network, calls = getattr(pipe, backbone.component), []

    def draw():
        generator = torch.Generator().manual_seed(0)
        options = {"height": 32, "width": 32, "output_type": "latent", "generator": generator, "num_inference_steps": 1}
        return pipe("a Cat", guidance_scale=4.0, **options, **({} if model == "sdxl" else OPTIONS)).images

    handle = network.register_forward_hook(
        lambda _, args, given, out: calls.append((args, given, out)), with_kwargs=True
    )
    plain = draw()
    handle.remove()
    [(args, given, (expected,))] = calls
    noisy, *timestep = args
    condition = torch.cat([backbone.null_condition(), backbone.conditions(["a Cat"], [0])])
    timesteps = torch.as_tensor(given.get("timestep", *timestep)).expand(2)
    torch.testing.assert_close(backbone.predict(noisy, timesteps, condition), expected[:, :4])
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    before = snapshot(network)
    for compressor in (CAM(LGTM(ratio=0.5)), IEKVD(factor=2)):
        with compressor.applied_to(network):
            assert (draw() - plain).abs().max() > 1e-3
        assert torch.equal(draw(), plain)
    assert snapshot(network) == before


@every_model
def test_blank_conditions_have_the_shape_of_real_ones(folders, backbones, model):
    backbone = backbones[model]
    assert backbone_without_weights(str(folders[model])).blank_condition().shape == backbone.null_condition().shape
    assert all(finding.ok for finding in inspect_model(backbone))
    assert {"alpha": 120, "sigma": 300, "sdxl": PROMPT_TOKENS}[model] == backbone.tokenizer.model_max_length


def test_shards_of_a_variant(backbones, copy):
    folder = copy("sigma")
    for weights in folder.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    saved = folder / "text_encoder/model.fp16.safetensors"
    expected = load_file(saved)
    saved.rename(folder / "text_encoder/model.safetensors")
    text = T5EncoderModel.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder/model.safetensors").unlink()
    text.save_pretrained(folder / "text_encoder", variant="fp16", max_shard_size="1KB")
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    backbone = loaded(KINDS["sigma"], folder, variant="fp16", dtype="bfloat16")
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}
    assert torch.equal(backbone.text_encoder.shared.weight, expected["shared.weight"].bfloat16())
    condition = backbone.conditions(["a cat"], [0])
    torch.testing.assert_close(condition.float(), backbones["sigma"].conditions(["a cat"], [0]), atol=0.05, rtol=0.05)
    assert condition.dtype == torch.bfloat16
    assert backbone.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), condition).isfinite().all()


@pytest.mark.parametrize(
    ("model", "file", "change", "message"),
    [
        (
            "sdxl",
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline"},
            "names StableDiffusionPipeline; StableDiffusionXL loads StableDiffusionXLPipeline",
        ),
        ("sigma", "model_index.json", {"_class_name": "SanaPipeline"}, "loads PixArtAlphaPipeline and PixArtSigmaP"),
        ("sdxl", "model_index.json", {"text_encoder_2": [None, None]}, "is not a .*XL model: it has no text_encoder_2"),
        ("sigma", "model_index.json", {"text_encoder": [None, None]}, "is not a PixArt model: it has no text_encoder"),
        ("sdxl", "text_encoder_2/config.json", {"hidden_size": 4}, "cross_attention_dim 16, but .* of width 12"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "addition_embed_type None; expected 'text_time'"),
        ("sigma", "text_encoder/config.json", {"d_model": 4}, "caption_channels 8, but its text encoder gives .* 4"),
        (
            "sigma",
            "text_encoder/config.json",
            {"vocab_size": 9},
            "300 and 30 tokens, but its text encoder 100000 and 9",
        ),
    ],
)
def test_folders_that_do_not_fit(copy, model, file, change, message):
    folder = copy(model)
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **change}))
    with pytest.raises(InputError, match=message) as error:
        loaded(KINDS[model], folder)
    assert str(folder) in str(error.value)


def test_prompts_longer_than_the_encoder_takes(backbones):
    backbone = backbones["sdxl"]
    assert backbone.check_prompts(["a cat", "a dog"], True) == ""
    with pytest.raises(InputError, match=r"prompts cut after 8 tokens: 1 of 2, such as 'a longer cat'; shorten them"):
        backbone.check_prompts(["a longer cat", "a dog"], False)
    with pytest.raises(InputError, match="cannot tell 'a Cat' and 'a cat' apart"):
        backbones["sigma"].check_prompts(["a Cat", "a cat"], True)


def test_images_that_are_no_whole_patches(backbones):
    backbone = backbones["sigma"]
    assert backbone.latents_of(36) == (4, 18, 18)
    with pytest.raises(InputError, match=r"takes images of a multiple of 4 px, .* not 34 px: its patches are 2x2"):
        backbone.latents_of(34)
    with pytest.raises(InputError, match=r"takes images of a multiple of 2 px, .* not 33 px; change the image size"):
        backbones["sdxl"].latents_of(33)


def test_sana_is_refused_with_the_reason(tmp_path):
    reason = "Sana's linear attention has no score per key and its feed-forward is a convolution"
    network = on_meta(SanaTransformer2DModel, {"num_layers": 1})
    with pytest.raises(InputError, match=f"^SanaTransformer2DModel is not supported: {reason}"):
        layout_of(network)
    folder = save_dit(tmp_path / "sana")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for build in (backbone_without_weights, lambda folder: DiT(folder).load()):
        with pytest.raises(InputError, match=f"gives SanaTransformer2DModel for transformer; .*: {reason}"):
            build(str(folder))
