"""Diffusers folders: what is read of good ones; what loading, and inspection without weights, say about bad ones."""

import itertools
import json
import re
import shutil

import pytest
import torch
from models import loaded, save_dit, save_stable_diffusion, tiny_dit, tiny_text_encoder, tiny_unet, tiny_vae
from safetensors.torch import load_file, save_file

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.geometry import build_on_meta
from bigain.backbones.inspection import inspect_model
from bigain.backbones.loading import find_model
from bigain.compressors import ToMe
from bigain.errors import InputError

KINDS = {"unet": StableDiffusion, "transformer": DiT}
WEIGHTS = "diffusion_pytorch_model.safetensors"
both = pytest.mark.parametrize("component", ["unet", "transformer"])


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Good folders; tests that break one take a copy."""
    root, in_pixels = tmp_path_factory.mktemp("models"), {"prediction_type": "v_prediction", "vae": False}
    return {
        "unet": save_stable_diffusion(root / "unet"),
        "transformer": save_dit(root / "transformer"),
        "unet in pixels": save_stable_diffusion(root / "unet_pixels", **in_pixels),
        "transformer in pixels": save_dit(root / "transformer_pixels", **in_pixels, learned_sigma=False),
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

        def wrong(self):
            """The first finding that is not ok; others say the same."""
            findings = [finding for finding in inspect_model(self.kind(str(self.path))) if not finding.ok]
            assert len({finding.message for finding in findings}) == 1
            return findings[0]

    return Broken


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def condition_of(backbone, b):
    if isinstance(backbone, DiT):
        return backbone.conditions([""] * b, range(b))
    return backbone.conditions(["a cat"] * b, range(b))


@both
def test_load_reads_the_weights_once(folders, component):
    backbone = loaded(KINDS[component], folders[component])
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
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precision(folders, component, dtype):
    backbone = loaded(KINDS[component], folders[component], dtype=dtype)
    assert {parameter.dtype for parameter in backbone.parameters()} == {getattr(torch, dtype)}
    noisy = noise(2, *backbone.latent_shape)
    output = backbone.predict_target(noisy, torch.tensor([5, 900]), condition_of(backbone, 2), "epsilon")
    exact = loaded(KINDS[component], folders[component])
    expected = exact.predict_target(noisy, torch.tensor([5, 900]), condition_of(exact, 2), "epsilon")
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, atol=0.1 if dtype == "bfloat16" else 0.02, rtol=0)
    assert backbone.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).dtype == torch.float32


@both
def test_the_noise_schedule_stays_in_float32(folders, component):
    backbone = loaded(KINDS[component], folders[component]).to(torch.bfloat16)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).float()
    actual = backbone.parametrisation.alpha_bar(torch.arange(1000))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    assert backbone.parametrisation.alpha_bar(torch.tensor([7, 7, 0])).shape == (3,)


@both
def test_sizes(folders, component):
    side = {"unet": 8, "transformer": 16}[component]
    backbone = loaded(KINDS[component], folders[component])
    assert backbone.latent_shape == (4, side, side)
    assert backbone.latents_of(2 * side)[1:] == (side, side)
    with pytest.raises(InputError, match="at most 32768, not 1000000 px"):
        backbone.latents_of(1_000_000)
    pixels = loaded(KINDS[component], folders[f"{component} in pixels"])
    assert pixels.vae is None
    assert pixels.latents_of(side)[1:] == (side, side)


def test_encode_is_the_posterior_mean_times_the_scaling_factor(folders):
    backbone = loaded(StableDiffusion, folders["unet"])
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode(images)
    moments = backbone.vae.quant_conv(backbone.vae.encoder(images.float() / 127.5 - 1))
    assert latents.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents, moments[:, :4] * backbone.vae.config["scaling_factor"])
    assert torch.equal(backbone.encode(images), latents)


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
    found = loaded(StableDiffusion, copy.path).state_dict()
    assert all(finding.ok for finding in inspect_model(StableDiffusion(str(copy.path))))
    for weights in copy.path.glob("*/*.fp16.safetensors"):
        other = weights.with_name(weights.name.replace("fp16", "bf16"))
        save_file({name: 2 * value for name, value in load_file(weights).items()}, other, metadata={"format": "pt"})
    assert "has no weights without a variant, but" in copy.error()
    assert "diffusion_pytorch_model.bf16.safetensors, diffusion_pytorch_model.fp16.safetensors; set" in copy.error()
    half = loaded(StableDiffusion, copy.path, variant="fp16").state_dict()
    assert all(map(torch.equal, half.values(), found.values()))
    other = loaded(StableDiffusion, copy.path, variant="bf16").denoiser.conv_in.weight
    assert torch.equal(other, 2 * found["denoiser.conv_in.weight"])
    with pytest.raises(InputError, match="no weights of variant int8"):
        loaded(StableDiffusion, copy.path, variant="int8")


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
    loaded(StableDiffusion, copy.path)
    [record] = [record for record in caplog.records if record.name.startswith("bigain")]
    assert "unet of" in record.message
    assert "holds 1 weight that UNet2DConditionModel does not have, such as lora.weight" in record.message


def test_a_configuration_cannot_choose_kernels_or_files(broken, monkeypatch):
    copy = broken("unet")
    path = copy.path / "text_encoder/config.json"
    config = json.loads(path.read_text())
    kernels = {"attn_implementation": "owner/kernel", "_attn_implementation": "owner/kernel"}
    path.write_text(json.dumps({**config, **kernels}))
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", None)
    assert loaded(StableDiffusion, copy.path).text_encoder.config._attn_implementation == "sdpa"
    path.write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert "has transformers_weights" in copy.error()


def cut(left):
    def damage(weights):
        data = weights.read_bytes()
        weights.write_bytes(data[: int(left * len(data))])

    return damage


def first_weight(value=None):
    """Replace the first weight by name, or leave it out."""

    def damage(weights):
        tensors = load_file(weights)
        name = min(tensors)
        del tensors[name]
        save_file(tensors if value is None else {**tensors, name: value}, weights, metadata={"format": "pt"})

    return damage


def as_pickle(name):
    def damage(weights):
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()

    return damage


# What loading says, and what is said without reading weights, which may be gigabytes.
DAMAGE = {
    "no folder": (lambda weights: shutil.rmtree(weights.parent), "cannot read", "no such file"),
    "no weights": (lambda weights: weights.unlink(), "holds no weights; expected a .safetensors", "not in the folder"),
    "half": (cut(0.5), "cannot load", "is damaged"),
    "git-lfs": (lambda weights: weights.write_bytes(b"version https://git-lfs"), "cannot load", "is damaged"),
    "other size": (first_weight(torch.zeros(5, 7)), "cannot load", "has shape [5, 7], but config.json gives it"),
    # The libraries would put random numbers there.
    "incomplete": (first_weight(), "lacks 1 weight of a", "weights that config.json asks for"),
    "bin": (as_pickle("model.bin"), "holds model.bin, a pickle, which can run code", "safetensors_only to false"),
    "ckpt": (as_pickle("model.ckpt"), "holds model.ckpt, a pickle, which can run code", "safe_serialization=True"),
}


@pytest.mark.parametrize(
    ("part", "kind"),
    # Two libraries load the parts.
    [*itertools.product(("text_encoder", "transformer"), DAMAGE), ("unet", "incomplete"), ("vae", "half")],
)
def test_damaged_components(broken, part, kind):
    copy, (damage, loading, inspected) = broken("transformer" if part == "transformer" else "unet"), DAMAGE[kind]
    [weights] = (copy.path / part).glob("*.safetensors")
    damage(weights)
    assert re.search(rf"{loading} .*{part}|{part}.* {loading} ", copy.error())
    finding = copy.wrong()
    assert finding.component == ("settings" if kind == "no folder" else part)
    assert inspected in finding.message
    assert finding.absent == (kind == "no weights")
    if finding.absent or inspected == "is damaged":
        assert finding.fix.startswith(f"copy {part}/")


FILES = {
    "model_index.json": "cannot read {}",
    "unet/config.json": "cannot read {}",
    "vae/config.json": "cannot read {}",
    "scheduler/scheduler_config.json": "cannot read {}",
    "tokenizer/tokenizer_config.json": "cannot load the tokenizer of",
    "tokenizer/tokenizer.json": "cannot load the tokenizer of",
}
# transformers would continue with an empty vocabulary.
MISSING = {
    "tokenizer_config.json": "with its tokenizer_config.json",
    "tokenizer.json": "has no vocabulary; expected tokenizer.json",
}


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_missing_or_not_json(broken, file):
    copy = broken("unet")
    (copy.path / file).write_text("{")
    assert FILES[file].format(file) in copy.error()
    (copy.path / file).unlink()
    assert MISSING.get(file.removeprefix("tokenizer/"), f"cannot read {file} of") in copy.error()
    finding = copy.wrong()
    assert finding.component == (file if file == "model_index.json" else "settings")
    assert finding.message == copy.error()


def test_a_good_folder(folders):
    backbone = StableDiffusion(str(folders["unet"]))
    findings = inspect_model(backbone)
    parts = ["settings", "unet", "text_encoder", "vae"]
    assert [finding.component for finding in findings] == ["model_index.json", *parts]
    assert all(finding.ok and not finding.fix for finding in findings)
    assert not backbone.loaded
    assert not list(backbone.parameters())


def test_shards(broken):
    copy = broken("unet")
    (copy.path / "unet" / WEIGHTS).unlink()
    tiny_unet(sample_size=8).save_pretrained(copy.path / "unet", max_shard_size="10KB")
    assert all(finding.ok for finding in inspect_model(StableDiffusion(str(copy.path))))
    loaded(StableDiffusion, copy.path)
    shards = sorted((copy.path / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    index = copy.path / "unet" / f"{WEIGHTS}.index.json"
    whole = index.read_text()
    index.write_text(whole.replace(shards[-1].name, f"../unet/{shards[-1].name}"))
    assert "expected .safetensors files beside it" in copy.wrong().message
    index.write_text(whole)
    shards[-1].unlink()
    assert f"unet/{shards[-1].name} of {copy.path} not in the folder" in copy.wrong().message
    index.write_text("{}")
    assert "does not list the shards" in copy.wrong().message


def test_a_model_that_is_not_there_or_of_another_kind(folders, tmp_path):
    for folder, words in ((tmp_path / "nothing", "is not a folder here"), (folders["unet"], "is not a DiT model")):
        [finding] = inspect_model(DiT(str(folder)))
        assert (finding.component, finding.ok) == ("model_index.json", False)
        assert words in finding.message


@both
def test_the_denoiser_on_the_meta_device(broken, component):
    """From configurations alone, and good enough to install a compressor on."""
    copy = broken(component)
    for weights in copy.path.glob("*/*.safetensors"):
        weights.unlink()
    backbone = copy.kind(str(copy.path))
    build_on_meta(backbone)
    denoiser = backbone.denoiser
    expected = tiny_unet(sample_size=8) if component == "unet" else tiny_dit()
    shapes = {name: value.shape for name, value in denoiser.named_parameters()}
    assert shapes == {name: value.shape for name, value in expected.named_parameters()}
    assert {parameter.device for parameter in denoiser.parameters()} == {torch.device("meta")}
    assert not denoiser.training
    with ToMe(ratio=0.5).applied_to(denoiser):
        pass
    (copy.path / component / "config.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        build_on_meta(copy.kind(str(copy.path)))
