"""Models of other kinds are refused before their weights are read, with a sentence that says why."""

import json
import re

import pytest
import torch
from diffusers import Transformer2DModel
from models import save_dit, save_stable_diffusion, tiny_dit
from safetensors.torch import load_file

from bigain.backbones import DiT, StableDiffusion
from bigain.diffusion.parametrisation import Flow
from bigain.errors import InputError


@pytest.fixture
def dit(tmp_path):
    return save_dit(tmp_path / "dit")


@pytest.fixture
def sd(tmp_path):
    return save_stable_diffusion(tmp_path / "sd")


def change(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def refusal(kind, folder):
    for weights in folder.glob("*/*.safetensors"):
        # Nothing of them may be needed to refuse.
        weights.write_bytes(b"")
    with pytest.raises(InputError) as error:
        kind(str(folder)).load()
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("part", "saved", "expected"),
    [
        ("unet", "UNet3DConditionModel", "UNet2DConditionModel"),
        ("tokenizer", "T5Tokenizer", "CLIPTokenizer"),
        ("vae", "AutoencoderTiny", "AutoencoderKL"),
    ],
)
def test_another_class_in_the_index(sd, part, saved, expected):
    change(sd / "model_index.json", **{part: ["diffusers", saved]})
    assert f"model_index.json of {sd} gives {saved} for {part}; expected {expected}" in refusal(StableDiffusion, sd)


@pytest.mark.parametrize(
    ("part", "settings", "expected"),
    [
        ("unet", {"_class_name": "UNetMotionModel"}, "gives UNetMotionModel for unet; expected UNet2DConditionModel"),
        ("vae", {"_class_name": "VQModel"}, "gives VQModel for vae; expected AutoencoderKL"),
        ("text_encoder", {"architectures": ["CLIPModel"]}, "gives CLIPModel for text_encoder; expected CLIPTextModel"),
    ],
)
def test_another_class_in_the_configuration(sd, part, settings, expected):
    change(sd / part / "config.json", **settings)
    with pytest.raises(InputError) as error:
        StableDiffusion(str(sd)).load()
    assert f"{part}/config.json of {sd} {expected}" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'.*backbones.StableDiffusionXL"),
        ({"num_class_embeds": 1000}, "num_class_embeds 1000.*expected Stable Diffusion 1.x or 2.x"),
        ({"in_channels": 9}, "in_channels 9 .* expected 4 in, 1 per channel of its VAE .more for inp"),
        ({"out_channels": 3}, "in_channels 4 and out_channels 3; expected 4 in, .* and as many or twice as many out"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim 1024, but its text encoder gives states of width 8"),
    ],
)
def test_networks_that_need_more_than_a_text(sd, settings, names):
    change(sd / "unet" / "config.json", **settings)
    assert re.search(names, refusal(StableDiffusion, sd))


def test_images_with_depth_are_refused(sd):
    change(sd / "vae/config.json", in_channels=6, out_channels=6)
    assert f"the VAE of {sd} has in_channels, out_channels [6, 6]; expected 3" in refusal(StableDiffusion, sd)


def test_a_network_in_pixels_has_three_channels(tmp_path):
    folder = save_dit(tmp_path / "dit", vae=False)
    change(folder / "transformer/config.json", in_channels=1)
    assert "has in_channels 1 and out_channels 6; expected 3 in, for RGB images" in refusal(DiT, folder)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        *[(None, "and 54 tokens, but its text encoder 8 and 54"), (9, "has model_max_length 9 and")],
        *[("8", "has model_max_length '8' and"), (2, "model_max_length 2 and")],
    ],
)
def test_a_tokenizer_of_another_model(sd, length, words):
    change(sd / "tokenizer/tokenizer_config.json", model_max_length=length)
    assert words in refusal(StableDiffusion, sd)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        # What `FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)` saves.
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "has the beta_schedule of another scheduler; delete"),
        ({"_class_name": "EDMEulerScheduler"}, "a model of EDM or consistency; expected .* or a scheduler of flow"),
        ({"use_flow_sigmas": True, "flow_shift": -2}, "the noise levels of .* are not 1000 numbers"),
        ({"use_flow_sigmas": True, "use_dynamic_shifting": True, "base_shift": []}, "cannot make the schedule"),
        ({"use_flow_sigmas": True, "invert_sigmas": True}, "has invert_sigmas"),
        ({"timestep_type": "continuous"}, "has timestep_type 'continuous'"),
        ({"prediction_type": "sample"}, "predicts 'sample'; expected epsilon or v_prediction"),
        ({"num_train_timesteps": 1e12}, "num_train_timesteps 1000000000000.0; expected .* 1000 timesteps"),
        ({"beta_end": 1.5}, r"not 1000 numbers in \[0, 1\]"),
    ],
)
def test_other_kinds_of_diffusion(dit, settings, names):
    change(dit / "scheduler/scheduler_config.json", **settings)
    assert re.search(names, refusal(DiT, dit))


def test_a_flow_is_refused_where_no_network_of_the_class_has_one(sd, monkeypatch):
    change(sd / "scheduler/scheduler_config.json", use_flow_sigmas=True)
    assert re.search("a model of flow matching; expected a DDPM noise schedule", refusal(StableDiffusion, sd))
    monkeypatch.setattr(StableDiffusion, "kinds", (Flow,))
    change(sd / "scheduler/scheduler_config.json", use_flow_sigmas=False)
    assert re.search("is not of flow matching; expected a scheduler of flow", refusal(StableDiffusion, sd))


def test_pixart(dit):
    index = dit / "model_index.json"
    change(index, transformer=["diffusers", "PixArtTransformer2DModel"])
    message = refusal(DiT, dit)
    assert "gives PixArtTransformer2DModel for transformer; expected DiTTransformer2DModel: PixArt is" in message
    change(index, transformer=["diffusers", "Transformer2DModel"])
    change(dit / "transformer/config.json", _class_name="Transformer2DModel", norm_type="ada_norm_single")
    assert "norm_type 'ada_norm_single'; expected 'ada_norm_zero'" in refusal(DiT, dit)


def test_dit_under_its_old_class_name(dit):
    """facebook/DiT-XL-2-512 and -256 were saved as `Transformer2DModel`."""
    new = tiny_dit()
    old = Transformer2DModel(
        patch_size=2,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
        activation_fn="gelu-approximate",
        **{name: new.config[name] for name in ("num_attention_heads", "attention_head_dim", "in_channels")},
        **{name: new.config[name] for name in ("out_channels", "num_layers", "sample_size", "num_embeds_ada_norm")},
    )
    old.load_state_dict(new.state_dict())
    old.save_pretrained(dit / "transformer")
    assert json.loads((dit / "transformer/config.json").read_text())["_class_name"] == "Transformer2DModel"
    change(dit / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    backbone = DiT(str(dit))
    backbone.load()
    assert type(backbone.denoiser).__name__ == "DiTTransformer2DModel"
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in backbone.denoiser.state_dict().items())


def as_pickle(folder, part, content=None):
    """Replace a component's weights by a pickle of them."""
    [weights] = (folder / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(weights) if content is None else content, weights.with_name(name))
    weights.unlink()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_if_the_user_says_so(sd, part):
    expected = StableDiffusion(str(sd))
    expected.load()
    as_pickle(sd, part)
    backbone = StableDiffusion(str(sd), safetensors_only=False)
    backbone.load()
    assert all(map(torch.equal, backbone.state_dict().values(), expected.state_dict().values()))
    with pytest.raises(InputError, match=r"a pickle, which can run code.*safetensors_only to false"):
        StableDiffusion(str(sd)).load()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_no_code_runs_from_pickles(sd, tmp_path, part):
    as_pickle(sd, part, content={"weight": Bomb(tmp_path / "ran")})
    with pytest.raises(InputError, match=f"cannot load {part} of"):
        StableDiffusion(str(sd), safetensors_only=False).load()
    assert not (tmp_path / "ran").exists()
