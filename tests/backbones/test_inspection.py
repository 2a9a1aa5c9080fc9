"""Checks of model files without reading weights."""

import shutil

import pytest
import torch
from models import save_dit, save_stable_diffusion, tiny_dit, tiny_unet
from safetensors.torch import load_file, save_file

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.geometry import build_on_meta
from bigain.backbones.inspection import inspect_model
from bigain.compressors import ToMe
from bigain.errors import InputError

PARTS = ["unet", "text_encoder", "tokenizer", "vae", "scheduler"]


@pytest.fixture
def sd(tmp_path):
    return save_stable_diffusion(tmp_path / "sd")


def wrong(folder, kind=StableDiffusion, **settings):
    """Return the single finding that is not ok."""
    [finding] = [finding for finding in inspect_model(kind(str(folder), **settings)) if not finding.ok]
    return finding


def test_a_good_folder(sd):
    backbone = StableDiffusion(str(sd))
    findings = inspect_model(backbone)
    assert [finding.component for finding in findings] == ["model_index.json", *PARTS]
    assert all(finding.ok and not finding.fix for finding in findings)
    assert not backbone.loaded
    assert not list(backbone.parameters())


@pytest.mark.parametrize(("kind", "name"), [(DiT, "shapes_dit"), (StableDiffusion, "shapes_unet")])
def test_embedded_models(kind, name):
    findings = inspect_model(kind(name))
    assert all(finding.ok for finding in findings)
    assert "vae" not in {finding.component for finding in findings}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_component(sd, part):
    shutil.rmtree(sd / part)
    finding = wrong(sd)
    assert finding.component == part
    assert f"{part}/" in finding.message
    assert "not in the folder" in finding.message
    assert finding.fix.startswith(f"copy {part}/")
    assert finding.absent


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("left", [0.0, 4, 0.01, 0.5, -1])
def test_weights_cut_short(sd, part, left):
    [weights] = (sd / part).glob("*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    finding = wrong(sd)
    assert finding.component == part
    assert f"{weights} is damaged" in finding.message
    assert not finding.absent
    assert finding.fix == f"copy {part}/{weights.name} into {sd} from where the model came from"


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x02" + b"\0" * 7 + b"[]"])
def test_other_things_in_place_of_weights(sd, content):
    (sd / "unet/diffusion_pytorch_model.safetensors").write_bytes(content)
    assert "is damaged" in wrong(sd).message


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_of_another_size_or_incomplete(sd, part):
    """Loading refuses them, too, but after reading gigabytes."""
    [weights] = (sd / part).glob("*.safetensors")
    tensors = load_file(weights)
    name = max(tensors)
    save_file({**tensors, name: torch.zeros(5, 7)}, weights, metadata={"format": "pt"})
    assert "has shape [5, 7], but config.json gives it" in wrong(sd).message
    with pytest.raises(InputError, match=f"cannot load {part}"):
        StableDiffusion(str(sd)).load()
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert f"{sd / part} holds " in wrong(sd).message


def test_weights_that_cannot_be_read(sd, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bigain.backbones.inspection.safe_open", refuse)
    findings = inspect_model(StableDiffusion(str(sd)))
    assert sum("Permission denied" in finding.message for finding in findings) == 3


def test_shards(sd):
    (sd / "unet/diffusion_pytorch_model.safetensors").unlink()
    tiny_unet(sample_size=8).save_pretrained(sd / "unet", max_shard_size="10KB")
    assert all(finding.ok for finding in inspect_model(StableDiffusion(str(sd))))
    StableDiffusion(str(sd)).load()
    shards = sorted((sd / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert f"unet/{shards[-1].name} of {sd} not in the folder" in wrong(sd).message
    (sd / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "does not list the shards" in wrong(sd).message


def test_pickles(sd):
    weights = sd / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "safetensors_only to false" in wrong(sd).message
    assert all(finding.ok for finding in inspect_model(StableDiffusion(str(sd), safetensors_only=False)))


def test_a_model_that_is_not_there_or_of_another_kind(sd, tmp_path):
    assert wrong(tmp_path / "nothing").component == "model_index.json"
    assert "is not a DiT model" in wrong(sd, DiT).message


def test_a_tokenizer_without_a_vocabulary(sd):
    (sd / "tokenizer/tokenizer.json").unlink()
    finding = wrong(sd)
    assert finding.component == "tokenizer"
    assert "vocab.json" in finding.message


@pytest.mark.parametrize(("kind", "save"), [(DiT, save_dit), (StableDiffusion, save_stable_diffusion)])
def test_the_denoiser_on_the_meta_device(tmp_path, kind, save):
    """From configurations alone, and good enough to install a compressor on."""
    folder = save(tmp_path / "model")
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    backbone = kind(str(folder))
    build_on_meta(backbone)
    denoiser = backbone.denoiser
    expected = tiny_dit() if kind is DiT else tiny_unet(sample_size=8)
    shapes = {name: value.shape for name, value in denoiser.named_parameters()}
    assert shapes == {name: value.shape for name, value in expected.named_parameters()}
    assert {parameter.device for parameter in denoiser.parameters()} == {torch.device("meta")}
    assert not denoiser.training
    with ToMe(ratio=0.5).applied_to(denoiser):
        pass
    (folder / kind.component / "config.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        build_on_meta(kind(str(folder)))
