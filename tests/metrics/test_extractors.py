"""Inception features against torch-fidelity's and torchmetrics' own extractors, on random weights."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from bigain.errors import InputError
from bigain.metrics import inception
from bigain.metrics.inception import Inception, pooling_layers

PUBLISHED = inception.SHA256
PROTOCOLS = ("pytorch-fid", "torch-fidelity", "torchmetrics")


def random_state():
    """Weights of the whole network, classifier included, that keep activations of order 1."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in pooling_layers().state_dict().items():
        if tensor.ndim == 4:
            state[name] = torch.randn(tensor.shape, generator=draw) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        else:
            spread = 0.2 * torch.randn(tensor.shape, generator=draw)
            state[name] = spread.abs() + 0.9 if name.endswith(("bn.weight", "running_var")) else spread
    return {**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def weights():
    """A `.pth` that stands for the published one. Removed at the end: pytest would keep it for days."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "weights.pth"
        torch.save(random_state(), path)
        patch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        yield str(path)


@pytest.fixture(scope="module")
def extractors(weights):
    return {protocol: Inception(protocol, weights) for protocol in PROTOCOLS}


@pytest.fixture(scope="module")
def images():
    """Two images whose detail survives no resize unchanged, larger than the network's input in one direction."""
    return torch.randint(256, (2, 3, 340, 90), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def expected(extractors, images):
    return {protocol: extractor(images) for protocol, extractor in extractors.items()}


def test_features_are_those_of_the_packages_the_protocols_are_named_after(weights, images, expected):
    theirs = FeatureExtractorInceptionV3("reference", ["2048"], weights).eval()
    assert len(theirs.state_dict()) == 566
    torch.testing.assert_close(expected["torch-fidelity"], theirs(images)[0], rtol=0, atol=0)
    theirs = NoTrainInceptionV3("reference", ["2048"], weights, antialias=True)
    torch.testing.assert_close(expected["torchmetrics"], theirs(images), rtol=0, atol=0)


def test_pytorch_fid_features_are_those_of_its_recipe(extractors, images, expected):
    x = F.interpolate(images.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
    x = 2 * x - 1
    for _, layer in extractors["pytorch-fid"].network.named_children():
        x = layer(x)
    assert x.shape == (2, 2048, 1, 1)
    torch.testing.assert_close(expected["pytorch-fid"], x[:, :, 0, 0], rtol=0, atol=0)
    digest = extractors["pytorch-fid"].digest()
    assert digest == hashlib.sha256(Path(extractors["pytorch-fid"].weights).read_bytes()).hexdigest()


def test_the_classifier_of_the_inception_score_is_in_the_same_file(tmp_path, monkeypatch):
    state = {"fc.weight": torch.rand(1008, 2048), "fc.bias": torch.zeros(1008), "other": torch.zeros(1)}
    save_file(state, tmp_path / "all.safetensors")
    torch.testing.assert_close(Inception(weights=str(tmp_path / "all.safetensors")).classifier, state["fc.weight"])
    save_file({"other": torch.zeros(1)}, tmp_path / "features.safetensors")
    assert Inception(weights=str(tmp_path / "features.safetensors")).classifier is None


def test_absent_weights_are_described(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    # The stand-in for the weights may have put its own here.
    monkeypatch.setattr(inception, "SHA256", PUBLISHED)
    cache = tmp_path / "hub" / "checkpoints"
    with pytest.raises(InputError) as caught:
        Inception().load()
    message = str(caught.value)
    for words in (
        "sha256 6726825d",
        str(cache / "weights-inception-2015-12-05-6726825d.pth"),
        str(cache / "pt_inception-2015-12-05-6726825d.pth"),
        f"curl -L --create-dirs -o {cache}",
        "https://github.com/toshas/torch-fidelity/releases/download",
        inception.VARIABLE,
    ):
        assert words in message
    monkeypatch.setenv(inception.VARIABLE, str(tmp_path / "elsewhere.pth"))
    with pytest.raises(InputError, match=r"elsewhere.pth \(from BIGAIN_INCEPTION_WEIGHTS\)"):
        Inception().load()
    with pytest.raises(InputError, match=r"given.pth \(from `weights`\)"):
        Inception(weights=str(tmp_path / "given.pth")).load()


def test_other_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="holds other weights"):
        Inception(weights=str(tmp_path / "other.pth")).load()
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "few.safetensors")
    with pytest.raises(InputError, match=r"few.safetensors does not hold the weights .* Missing key"):
        Inception(weights=str(tmp_path / "few.safetensors")).load()
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(InputError, match=r"torn.safetensors does not hold the weights"):
        Inception(weights=str(tmp_path / "torn.safetensors")).load()
    with pytest.raises(InputError, match=r"protocol must be one of .*, not 'fid'"):
        Inception("fid")
