"""DINOv2, CLIP, CMMD, PickScore and the Inception score, on tiny folders of the true format, computed independently."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from models import save_clip, save_dino
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, Dinov2Model

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics import ClipFeatures, ClipScore, DinoSimilarity, DinoV2, Images, Inception, PickScore
from bigain.metrics.base import evaluate, jackknife_error
from bigain.metrics.cmmd import Cmmd
from bigain.metrics.inception_score import InceptionScore
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.runs.records import SampleRecord
from bigain.tasks.scoring import distances

NO_CLASSES = ClassSpace((), (), None)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images():
    """Noise, neither square nor of a size that any network takes."""
    return torch.randint(256, (3, 3, 90, 300), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def records_of(features):
    return [SampleRecord(f"{i:04}", [], "", 0.0, row) for i, row in enumerate(features)]


def resized(image, side, mean, deviation):
    """Pillow's bicubic resize of every channel in floating point."""
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image]
    x = np.stack([np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels])
    x = (x / 255).clip(0, 1)
    return torch.from_numpy((x - np.array(mean)[:, None, None]) / np.array(deviation)[:, None, None]).float()[None]


def test_dino_features_are_the_class_token_at_224(dino, images):
    extractor, model = DinoV2(str(dino)), Dinov2Model.from_pretrained(dino).eval()
    features = extractor(images)
    assert (extractor.dimension, features.dtype) == (24, torch.float32)
    assert extractor.digest() == hashlib.sha256((dino / "model.safetensors").read_bytes()).hexdigest()
    for image, row in zip(images, features, strict=True):
        with torch.no_grad():
            x = resized(image, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            expected = model(pixel_values=x).last_hidden_state[0, 0]
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)
    assert (features[0] - features[1]).abs().max() > 0.1


def test_clip_features_have_unit_length_at_the_models_size(clip, images):
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    features = ClipFeatures(str(clip))(images)
    for image, row in zip(images, features, strict=True):
        with torch.no_grad():
            x = resized(image, 32, processor.image_mean, processor.image_std)
            embedding = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)[0]
        torch.testing.assert_close(row, embedding / embedding.norm(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="expected uint8"):
        ClipFeatures(str(clip))(images.float())


def test_similarity_is_the_cosine_of_the_features(dino, images):
    metric, extractor = DinoSimilarity(str(dino)), DinoV2(str(dino))
    others = images.flip(3)
    a, b = extractor(images).double(), extractor(others).double()
    expected = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(metric.measure(Images(images, (), others)).double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.max() < 0.999
    torch.testing.assert_close(metric.measure(Images(images, (), images)), torch.ones(3))
    assert metric.label == f"dino_similarity[dinov2-{extractor.digest()[:8]}]"


def test_cmmd_is_the_mean_of_its_kernel_over_pairs():
    draw = np.random.default_rng(0)
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (draw.normal(size=(9, 6)), draw.normal(size=(7, 6))))

    def kernel(a, b):
        return np.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 200)

    def cmmd(x, y):
        within = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
        return 1000 * (sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))

    reference = ReferenceStatistics(Moments.of([y]), "clip", features=y.astype(np.float32))
    value, without = Cmmd(reference).leave_one_out(x, y)
    assert value == pytest.approx(cmmd(x, y), abs=1e-9)
    assert without[2] == pytest.approx(cmmd(np.delete(x, 2, 0), y), abs=1e-9)
    for protocol in ("clip", "dinov2"):
        reference = ReferenceStatistics(Moments.of([y]), protocol, features=y.astype(np.float32))
        found, _ = evaluate(distances(reference), records_of(x), NO_CLASSES)
        assert ("cmmd[clip]" in found) == (protocol == "clip")
        assert f"frechet[{protocol}]" in found
        if protocol == "clip":
            assert found["cmmd[clip]"]["value"] == pytest.approx(value, abs=1e-3)
            assert found["cmmd[clip]"]["standard_error"] == pytest.approx(jackknife_error(without), abs=1e-3)


def test_clip_score_and_pick_score_are_of_the_cosine_of_image_and_prompt(clip, images):
    prompts = ["a red square", "a circle", "a blue triangle " * 30]
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessor.from_pretrained(clip)(images=list(images), return_tensors="pt")["pixel_values"]
    cosines = []
    # One by one: neither padding nor other images enter.
    for prompt, image in zip(prompts, pixels, strict=True):
        tokens = tokenizer([prompt], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            seen = model.visual_projection(model.vision_model(pixel_values=image[None]).pooler_output)
            text = model.text_projection(model.text_model(input_ids=tokens["input_ids"]).pooler_output)
        cosines.append(torch.cosine_similarity(seen, text))
    cosine = torch.cat(cosines)
    assert cosine.min() < 0 < cosine.max()
    clip_score, pick_score = ClipScore(str(clip)), PickScore(str(clip))
    scores = [metric.measure(Images(images, prompts)) for metric in (clip_score, pick_score)]
    # The CLIP score is cut at 0.
    torch.testing.assert_close(scores[0], 100 * cosine.clamp(min=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[1], model.logit_scale.detach().exp() * cosine, rtol=1e-4, atol=1e-4)
    digest = hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest()
    assert [clip_score.label, pick_score.label] == [
        f"clip_score[{clip.name}]", f"pick_score[{clip.name}-{digest[:8]}]"
    ]  # fmt: skip


@pytest.mark.parametrize("n", [20, 57])
def test_inception_score_against_its_formula(n):
    draw = np.random.default_rng(3)
    features, classifier = draw.normal(size=(n, 12)).astype(np.float32), draw.normal(size=(30, 12)).astype(np.float32)
    extractor = Inception("pytorch-fid", "unused")
    extractor.classifier = torch.from_numpy(classifier)
    logits = torch.from_numpy(features.astype(np.float64) @ classifier.T)
    dealt = logits[np.random.RandomState(2020).permutation(n)]
    parts = []
    for i in range(10):
        p = dealt[i * n // 10 : (i + 1) * n // 10].softmax(1)
        parts.append(float((p * (p / p.mean(0)).log()).sum(1).mean().exp()))
    (found,), _ = evaluated(InceptionScore(extractor), features)
    assert found["value"] == pytest.approx(np.mean(parts), rel=1e-6)
    assert found["standard_deviation"] == pytest.approx(np.std(parts), rel=1e-5)
    assert found["high"] - found["value"] == pytest.approx(1.96 * np.std(parts, ddof=1) / 10**0.5, rel=1e-3)
    assert evaluated(InceptionScore(extractor), features[:19]) == ([], {"inception_score": "19 images: it takes 20"})
    extractor.classifier = None
    without = {"inception_score": "the file of the Inception weights has no classifier"}
    assert evaluated(InceptionScore(extractor), features) == ([], without)


def evaluated(metric, features):
    found, missing = evaluate([metric], records_of(features), NO_CLASSES)
    return [*found.values()], missing


def test_what_is_missing_and_what_to_fetch(dino, clip, tmp_path):
    for extractor in (DinoV2, ClipFeatures):
        for folder, reason in ((None, "no folder was given as `weights`"), ("none", "from none: no such folder")):
            with pytest.raises(InputError, match=reason) as error:
                extractor(folder).load()
            assert f"hf download {extractor.published} --local-dir FOLDER" in str(error.value)
    assert "yuvalkirstain/PickScore_v1" in PickScore(str(tmp_path / "none")).unavailable()
    assert ClipScore(str(clip)).unavailable() is None
    half = tmp_path / "half"
    shutil.copytree(clip, half)
    (half / "model.safetensors").unlink()
    assert "half holds no weights" in ClipScore(str(half)).unavailable()
    # Transformers would fill in random weights.
    state = load_file(clip / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, such as text_projection\.weight"):
        ClipScore(str(half)).measure(Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a"]))
    (half / "model.safetensors").write_bytes(b"torn")
    assert "cannot load a CLIPModel" in ClipScore(str(half)).unavailable()
    # The weights of another model would leave all of its own random.
    shutil.copytree(dino, tmp_path / "mixed")
    shutil.copy(clip / "model.safetensors", tmp_path / "mixed")
    with pytest.raises(InputError, match=r"mixed lacks \d+ weights"):
        DinoV2(str(tmp_path / "mixed")).load()
