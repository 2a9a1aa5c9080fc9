"""Diffusers folders: what is read from good ones, and what is said about bad ones."""

import json
import shutil

import pytest
import torch
from models import save_dit, save_stable_diffusion, tiny_dit, tiny_text_encoder, tiny_unet, tiny_vae
from safetensors.torch import load_file, save_file

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.inspection import inspect_model
from bigain.backbones.loading import find_model
from bigain.errors import InputError

KINDS = {"unet": StableDiffusion, "transformer": DiT}
WEIGHTS = "diffusion_pytorch_model.safetensors"
both = pytest.mark.parametrize("component", ["unet", "transformer"])


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Good folders; tests that break one take a copy."""
    root = tmp_path_factory.mktemp("models")
    return {
        "unet": save_stable_diffusion(root / "unet"),
        "transformer": save_dit(root / "transformer"),
        "unet in pixels": save_stable_diffusion(root / "unet_pixels", prediction_type="v_prediction", vae=False),
        "transformer in pixels": save_dit(
            root / "transformer_pixels", prediction_type="v_prediction", vae=False, learned_sigma=False
        ),
    }


@pytest.fixture
def broken(folders, tmp_path):
    """A copy to break, and the error that loading it gives."""

    class Broken:
        def __init__(self, component):
            self.kind = KINDS[component]
            self.path = shutil.copytree(folders[component], tmp_path / "copy")

        def error(self):
            with pytest.raises(InputError) as error:
                self.kind(str(self.path)).load()
            assert str(self.path) in str(error.value)
            return str(error.value)

    return Broken


def load(kind, folder, **kwargs):
    backbone = kind(str(folder), **kwargs)
    backbone.load()
    return backbone


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def condition_of(backbone, b):
    if isinstance(backbone, DiT):
        return backbone.conditions([""] * b, range(b))
    return backbone.conditions(["a cat"] * b, range(b))


@both
def test_load_reads_the_weights_once(folders, component):
    backbone = load(KINDS[component], folders[component])
    expected = tiny_unet(sample_size=8) if component == "unet" else tiny_dit()
    assert all(map(torch.equal, backbone.denoiser.state_dict().values(), expected.state_dict().values()))
    assert all(map(torch.equal, backbone.vae.state_dict().values(), tiny_vae().state_dict().values()))
    if component == "unet":
        states = backbone.text_encoder.state_dict()
        assert all(torch.equal(states[name], value) for name, value in tiny_text_encoder().state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    denoiser, vae = backbone.denoiser, backbone.vae
    denoiser.conv_in = None
    backbone.load()
    assert backbone.denoiser is denoiser
    assert backbone.vae is vae
    assert denoiser.conv_in is None


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_precision(folders, component, dtype):
    backbone = load(KINDS[component], folders[component], dtype=dtype)
    assert {parameter.dtype for parameter in backbone.parameters()} == {getattr(torch, dtype)}
    noisy = noise(2, *backbone.latent_shape)
    output = backbone.predict_noise(noisy, torch.tensor([5, 900]), condition_of(backbone, 2))
    exact = load(KINDS[component], folders[component])
    expected = exact.predict_noise(noisy, torch.tensor([5, 900]), condition_of(exact, 2))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, atol=0.1 if dtype == "bfloat16" else 0.02, rtol=0)
    assert backbone.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).dtype == torch.float32


@both
def test_the_noise_schedule_stays_in_float32(folders, component):
    backbone = load(KINDS[component], folders[component]).to(torch.bfloat16)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).float()
    actual = backbone.alpha_bar(torch.arange(1000))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    assert backbone.alpha_bar(torch.tensor([7, 7, 0])).shape == (3,)


@both
def test_sizes(folders, component):
    side = {"unet": 8, "transformer": 16}[component]
    backbone = load(KINDS[component], folders[component])
    assert backbone.latent_shape == (4, side, side)
    assert backbone.latents_of(2 * side)[1:] == (side, side)
    with pytest.raises(InputError, match="images of 1000000 px are too large"):
        backbone.latents_of(1_000_000)
    pixels = load(KINDS[component], folders[f"{component} in pixels"])
    assert pixels.vae is None
    assert pixels.latents_of(side)[1:] == (side, side)


def test_encode_is_the_posterior_mean_times_the_scaling_factor(folders):
    backbone = load(StableDiffusion, folders["unet"])
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode(images)
    moments = backbone.vae.quant_conv(backbone.vae.encoder(images.float() / 127.5 - 1))
    assert latents.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents, moments[:, :4] * backbone.vae.config["scaling_factor"])
    assert torch.equal(backbone.encode(images), latents)


@both
def test_epsilon_is_the_output(folders, component):
    """Of a learned sigma, the first half."""
    backbone = load(KINDS[component], folders[component])
    noisy, t = noise(3, *backbone.latent_shape), torch.tensor([0, 500, 999])
    assert backbone.prediction_type == "epsilon"
    predicted = backbone.predict_noise(noisy, t, condition_of(backbone, 3))
    assert predicted.shape == noisy.shape
    assert torch.equal(predicted, raw_output(backbone, noisy, t)[:, :4])


@both
def test_velocity_is_converted(folders, component):
    backbone = load(KINDS[component], folders[f"{component} in pixels"])
    noisy, t = noise(3, *backbone.latent_shape), torch.tensor([0, 500, 999])
    assert backbone.prediction_type == "v_prediction"
    velocity = raw_output(backbone, noisy, t)
    assert velocity.shape == noisy.shape
    alpha_bar = backbone.alpha_bar(t).view(-1, 1, 1, 1)
    expected = alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy
    predicted = backbone.predict_noise(noisy, t, condition_of(backbone, 3))
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


def raw_output(backbone, noisy, t):
    condition = condition_of(backbone, len(noisy))
    if isinstance(backbone, DiT):
        return backbone.denoiser(noisy, timestep=t, class_labels=condition).sample
    return backbone.denoiser(noisy, t, encoder_hidden_states=condition).sample


def test_folders_may_use_the_home(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "./no/such", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder(name):
    with pytest.raises(InputError, match=r"is not a folder here, not an embedded model \(shapes_dit.*\) and not a hub"):
        StableDiffusion(name).load()


@both
def test_another_kind_of_model(folders, component):
    other = {"unet": "transformer", "transformer": "unet"}[component]
    names = f"is not a {KINDS[component].__name__} model: it has no {component} .*{other}"
    with pytest.raises(InputError, match=names):
        KINDS[component](str(folders[other])).load()


def as_variant(weights, variant):
    return weights.rename(weights.with_name(f"{weights.stem}.{variant}.safetensors"))


def test_weights_of_a_variant(broken):
    """The only one is taken; of several, the one without a name or the one that is set."""
    copy = broken("unet")
    for weights in copy.path.glob("*/*.safetensors"):
        as_variant(weights, "fp16")
    found = load(StableDiffusion, copy.path).state_dict()
    assert all(finding.ok for finding in inspect_model(StableDiffusion(str(copy.path))))
    for weights in copy.path.glob("*/*.fp16.safetensors"):
        other = weights.with_name(weights.name.replace("fp16", "bf16"))
        save_file({name: 2 * value for name, value in load_file(weights).items()}, other, metadata={"format": "pt"})
    assert "has no weights without a variant, but" in copy.error()
    assert "diffusion_pytorch_model.bf16.safetensors, diffusion_pytorch_model.fp16.safetensors; set" in copy.error()
    assert all(map(torch.equal, load(StableDiffusion, copy.path, variant="fp16").state_dict().values(), found.values()))
    other = load(StableDiffusion, copy.path, variant="bf16").denoiser.conv_in.weight
    assert torch.equal(other, 2 * found["denoiser.conv_in.weight"])
    with pytest.raises(InputError, match="no weights of variant int8"):
        load(StableDiffusion, copy.path, variant="int8")


@pytest.mark.parametrize(("part", "network"), [("unet", tiny_unet), ("text_encoder", tiny_text_encoder)])
def test_shards_beside_another_set_or_of_another_format(broken, part, network):
    copy = broken("unet")
    folder = copy.path / part
    [weights] = folder.glob("*.safetensors")
    index = folder / f"{weights.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"weight": "shard.bin"}}))
    torch.save(load_file(weights), folder / "shard.bin")
    assert f"{folder} holds two sets of weights, {weights.name} and {index.name}" in copy.error()
    weights.rename(folder / "empty.safetensors")
    assert f"{index} lists shard.bin as a shard; expected .safetensors files" in copy.error()
    messages = [finding.message for finding in inspect_model(StableDiffusion(str(copy.path))) if not finding.ok]
    assert messages == [copy.error()]


def test_surplus_weights_are_named(broken, caplog):
    copy = broken("unet")
    weights = copy.path / "unet" / WEIGHTS
    save_file({**load_file(weights), "lora.weight": torch.zeros(2)}, weights, metadata={"format": "pt"})
    load(StableDiffusion, copy.path)
    [record] = [record for record in caplog.records if record.name.startswith("bigain")]
    assert "unet of" in record.message
    assert "holds 1 weight that UNet2DConditionModel does not have, such as lora.weight" in record.message


def test_a_configuration_cannot_choose_kernels_or_files(broken, monkeypatch):
    copy = broken("unet")
    path = copy.path / "text_encoder/config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "attn_implementation": "owner/kernel", "_attn_implementation": "owner/kernel"})
    )
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", None)
    assert load(StableDiffusion, copy.path).text_encoder.config._attn_implementation == "sdpa"
    path.write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert "has transformers_weights" in copy.error()


@both
def test_a_missing_component(broken, component):
    copy = broken(component)
    shutil.rmtree(copy.path / component)
    assert f"cannot read {component}/config.json of {copy.path}: no such file; expected a diffusers" in copy.error()


@both
def test_no_weights(broken, component):
    copy = broken(component)
    (copy.path / component / WEIGHTS).unlink()
    assert "holds no weights; expected a .safetensors file" in copy.error()


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt"])
@both
def test_pickles_are_not_read(broken, component, name):
    copy = broken(component)
    weights = copy.path / component / WEIGHTS
    torch.save(load_file(weights), weights.with_name(name))
    weights.unlink()
    message = copy.error()
    assert f"holds {name}, a pickle, which can run code when loaded; expected safetensors" in message
    assert "safe_serialization=True" in message


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "transformer"])
@pytest.mark.parametrize("left", [0.5, 0.0])
def test_truncated_weights(broken, part, left):
    copy = broken("transformer" if part == "transformer" else "unet")
    [weights] = (copy.path / part).glob("*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * left)])
    assert f"cannot load {part} of" in copy.error()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "transformer"])
def test_incomplete_weights(broken, part):
    """The libraries would put random numbers there."""
    copy = broken("transformer" if part == "transformer" else "unet")
    [weights] = (copy.path / part).glob("*.safetensors")
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    message = copy.error()
    assert f"{part} of" in message
    assert "lacks 1 weight of" in message
    assert name.removeprefix("text_model.") in message


FILES = {
    "model_index.json": "cannot read {}",
    "unet/config.json": "cannot read {}",
    "vae/config.json": "cannot read {}",
    "scheduler/scheduler_config.json": "cannot read {}",
    "tokenizer/tokenizer_config.json": "cannot load the tokenizer of",
    "tokenizer/tokenizer.json": "cannot load the tokenizer of",
}
# transformers would continue with an empty vocabulary.
MISSING = {"tokenizer_config.json": "is missing", "tokenizer.json": "has no vocabulary; expected tokenizer.json"}


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_missing_or_not_json(broken, file):
    copy = broken("unet")
    (copy.path / file).write_text("{")
    assert FILES[file].format(file) in copy.error()
    (copy.path / file).unlink()
    assert MISSING.get(file.removeprefix("tokenizer/"), f"cannot read {file} of") in copy.error()


def test_after_an_error_loading_can_go_on(broken):
    """A repaired folder loads with the same object."""
    copy = broken("transformer")
    weights = copy.path / "transformer" / WEIGHTS
    weights.rename(weights.with_suffix(".away"))
    backbone = DiT(str(copy.path))
    with pytest.raises(InputError):
        backbone.load()
    assert not backbone.loaded
    weights.with_suffix(".away").rename(weights)
    backbone.load()
    assert backbone.loaded
