"""Models conditioned on text: called and sampled as their pipelines do, and refused where a part does not fit."""

import json
import shutil

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaTransformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from models import PROMPT_TOKENS, loaded, on_meta, save_dit, save_flux, save_pixart, save_sd3, save_sdxl, snapshot
from safetensors.torch import load_file
from transformers import T5EncoderModel

from bigain.backbones import DiT, Flux, PixArt, StableDiffusion3, StableDiffusionXL
from bigain.backbones.geometry import backbone_without_weights
from bigain.backbones.inspection import inspect_model
from bigain.backbones.sites import layout_of
from bigain.compressors import ABM, CAM, IEKVD, LGTM, AveragePool, FrequencyKV, SiTo, ToDo, ToMe
from bigain.diffusion.sampling import initial_noise, sample
from bigain.errors import InputError
from bigain.tasks.scheduling import make_scheduler

KINDS = {"alpha": PixArt, "sigma": PixArt, "sdxl": StableDiffusionXL}
KINDS |= {"sd3": StableDiffusion3, "sd3_without_t5": StableDiffusion3, "dev": Flux, "schnell": Flux}
PIPELINES = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline, "sdxl": StableDiffusionXLPipeline}
PIPELINES |= {"sd3": StableDiffusion3Pipeline, "sd3_without_t5": StableDiffusion3Pipeline}
PIPELINES |= {"dev": FluxPipeline, "schnell": FluxPipeline}
OPTIONS = {"use_resolution_binning": False, "clean_caption": False}
METHODS = [
    *(ToMe(ratio=0.5), LGTM(ratio=0.5), CAM(LGTM(ratio=0.5)), ABM(ratio=0.5), SiTo()),
    *(ToDo(factor=2), AveragePool(factor=2), IEKVD(factor=2), FrequencyKV(ratio=0.5, keep="high")),
]
every_model = pytest.mark.parametrize("model", KINDS)
# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        # At this size, PixArt-alpha takes the size of images, too.
        "alpha": save_pixart(root / "alpha", sample_size=128),
        "sigma": save_pixart(root / "sigma", "PixArtSigmaPipeline"),
        "sdxl": save_sdxl(root / "sdxl"),
        "sd3": save_sd3(root / "sd3"),
        "sd3_without_t5": save_sd3(root / "sd3_without_t5", t5=False, qk_norm=None, dual_attention_layers=()),
        "dev": save_flux(root / "dev"),
        "schnell": save_flux(root / "schnell", guidance_embeds=False),
    }
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(made["dev"] / "scheduler")
    for model in ("sd3", "sd3_without_t5", "dev", "schnell"):
        change(made[model] / "vae/config.json", shift_factor=0.4, scaling_factor=1.3)
    # As saved by a pipeline that was loaded with `text_encoder_3=None` alone.
    tokenizer = ["transformers", "T5TokenizerFast"]
    change(made["sd3_without_t5"] / "model_index.json", text_encoder_3=[None, None], tokenizer_3=tokenizer)
    return made


@pytest.fixture(scope="module")
def backbones(folders):
    return {model: loaded(KINDS[model], folder) for model, folder in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """Copy one of the folders to change it."""
    return lambda model: shutil.copytree(folders[model], tmp_path / model)


def change(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@torch.inference_mode()
@pytest.mark.parametrize("model", ["sd3", "sd3_without_t5", "dev", "schnell"])
def test_samples_are_those_of_the_pipeline(folders, model):
    """Text states, calls of the network, noise levels and the decoder, from the same initial noise."""
    backbone, flux, shape = loaded(KINDS[model], folders[model]), KINDS[model] is Flux, (4, 16, 16)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if model == "sd3_without_t5" else {}
    pipe = PIPELINES[model].from_pretrained(folders[model], **absent)
    pipe.set_progress_bar_config(disable=True)
    prompt, guidance, keys = "a Cat", 3.5, torch.tensor([7])
    scheduler, spacing = make_scheduler(backbone, FlowMatchEulerDiscreteScheduler, {}, 3, shape)
    condition = backbone.conditions([prompt], [0])

    def denoise(x, timestep, step):
        if flux:
            return backbone.predict(x, timestep[None], condition)
        conditions = torch.cat((backbone.null_condition(), condition))
        without, with_prompt = backbone.predict(x.repeat(2, 1, 1, 1), timestep.expand(2), conditions).chunk(2)
        return without + guidance * (with_prompt - without)

    images = backbone.decode(sample(denoise, keys, shape, scheduler, 3, spacing))
    noise = initial_noise(keys, shape)
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "pt", "guidance_scale": guidance}
    # The pipelines ask T5 for more tokens than this tokenizer has.
    options["max_sequence_length"] = 256 if model == "sd3_without_t5" else PROMPT_TOKENS
    noise = FluxPipeline._pack_latents(noise, 1, *shape) if flux else noise
    expected = pipe(prompt, latents=noise, **options).images
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05
    network, before = pipe.transformer, snapshot(pipe.transformer)
    options["num_inference_steps"] = 1
    plain = pipe(prompt, latents=noise, **options).images
    for compressor in METHODS if model in ("sd3", "dev") else METHODS[:1]:
        with compressor.applied_to(network):
            assert (pipe(prompt, latents=noise, **options).images - plain).abs().max() > 1e-4
    assert torch.equal(pipe(prompt, latents=noise, **options).images, plain)
    assert snapshot(network) == before


@every_model
def test_blank_conditions_have_the_shape_of_real_ones(folders, model):
    backbone = loaded(KINDS[model], folders[model])
    expected = backbone.conditions(["a"], [0])
    assert backbone_without_weights(str(folders[model])).blank_condition().shape == expected.shape
    assert all(finding.ok for finding in inspect_model(backbone))
    assert backbone.tokenizer.model_max_length == {"alpha": 120, "sigma": 300}.get(model, PROMPT_TOKENS)
    backbone.finish_conditions()


@torch.inference_mode()
def test_latents_are_shifted_and_scaled(folders):
    backbone = loaded(KINDS["dev"], folders["dev"])
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = backbone.vae.encode(images / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(backbone.encode(images), (mean - 0.4) * 1.3)


@pytest.mark.parametrize(
    ("model", "file", "settings", "message"),
    [
        ("sdxl", "model_index.json", {"_class_name": "SanaPipeline"}, "names SanaPipeline; StableDiffusionXL loads"),
        ("sigma", "model_index.json", {"_class_name": "SanaPipeline"}, "loads PixArtAlphaPipeline and PixArtSigmaP"),
        ("sdxl", "model_index.json", {"text_encoder_2": [None, None]}, "is not a .*XL model: it has no text_encoder_2"),
        ("sigma", "model_index.json", {"text_encoder": [None, None]}, "is not a PixArt model: it has no text_encoder"),
        ("sdxl", "text_encoder_2/config.json", {"hidden_size": 4}, "cross_attention_dim 16, but .* of width 12"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "addition_embed_type None; expected 'text_time'"),
        ("sigma", "text_encoder/config.json", {"d_model": 4}, "caption_channels 8, but its text encoder gives .* 4"),
        ("sigma", "text_encoder/config.json", {"vocab_size": 9}, "300 and 30 tokens, but .* encoder 100000 and 9"),
        ("dev", "model_index.json", {"_class_name": "FluxFillPipeline"}, "names FluxFillPipeline; Flux loads FluxPipe"),
        ("sd3", "model_index.json", {"text_encoder_2": [None, None]}, "is not a .*3 model: it has no text_encoder_2"),
        ("dev", "model_index.json", {"text_encoder_2": [None, None]}, "is not a Flux model: it has no text_encoder_2"),
        ("dev", "scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"}, "expected a scheduler of flow"),
        ("dev", "transformer/config.json", {"in_channels": 64}, "in_channels 64 .*; expected 16 in, 4 per channel of"),
        ("sd3", "text_encoder_3/config.json", {"d_model": 8}, "joint_attention_dim 24, but its text .* width 8"),
        ("sd3", "text_encoder_2/config.json", {"projection_dim": 4}, "pooled_projection_dim 16, but .* of width 12"),
        ("sd3", "model_index.json", {"tokenizer_3": [None, None]}, "is not a .*3 model: it has no tokenizer_3"),
    ],
)
def test_folders_that_do_not_fit(copy, model, file, settings, message):
    folder = copy(model)
    change(folder / file, **settings)
    with pytest.raises(InputError, match=message) as error:
        loaded(KINDS[model], folder)
    assert str(folder) in str(error.value)


def test_networks_of_other_pipelines_without_weights(copy):
    folder = copy("dev")
    change(folder / "model_index.json", _class_name="FluxFillPipeline")
    with pytest.raises(InputError, match="names FluxFillPipeline; Flux loads FluxPipeline"):
        backbone_without_weights(str(folder))


def test_a_scheduler_that_cannot_shift_by_resolution(folders):
    backbone = loaded(Flux, folders["dev"])
    with pytest.raises(
        InputError, match=r"cannot use .*Heun.* with 3 steps .*: it cannot shift noise levels by the res"
    ):
        make_scheduler(backbone, FlowMatchHeunDiscreteScheduler, {}, 3, (4, 16, 16))


def test_what_a_model_does_not_take(folders):
    with pytest.raises(InputError, match=r"distilled_guidance is 3.5, but .*schnell takes no guidance"):
        loaded(KINDS["schnell"], folders["schnell"], distilled_guidance=3.5)
    backbone = loaded(KINDS["dev"], folders["dev"])
    with pytest.raises(InputError, match="without an unconditional prompt; sample with guidance: 1 and set"):
        backbone.check_guidance()
    with pytest.raises(InputError, match="takes images of a multiple of 4 px, at most 48, not 52 px"):
        loaded(KINDS["sd3"], folders["sd3"]).latents_of(52)


def test_more_distilled_guidance_changes_the_prediction(folders):
    noisy, timesteps = torch.ones(1, 4, 16, 16), torch.tensor([500.0])
    outputs = []
    for guidance in (None, 3.5, 1.0):
        backbone = loaded(KINDS["dev"], folders["dev"], distilled_guidance=guidance)
        outputs.append(backbone.predict(noisy, timesteps, backbone.conditions(["a"], [0])))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


@pytest.mark.parametrize("model", ["alpha", "sigma", "sdxl"])
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
    sana = ["diffusers", "SanaTransformer2DModel"]
    change(folder / "model_index.json", _class_name="SanaPipeline", transformer=sana)
    for build in (backbone_without_weights, lambda folder: DiT(folder).load()):
        with pytest.raises(InputError, match=f"gives SanaTransformer2DModel for transformer; .*: {reason}"):
            build(str(folder))
