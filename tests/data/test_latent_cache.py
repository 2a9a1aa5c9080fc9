"""Encoded images on disk: found by content, size and encoder only, and loaded instead of the image."""

import random

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from bigain.data import ImageFolder
from bigain.data.base import digest_of
from bigain.data.latent_cache import LatentCache
from bigain.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """Six images of three classes."""
    for i in range(6):
        folder = tmp_path / "images" / "abc"[i // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (4, 4), random.Random(i).randbytes(48)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def floats(batch):
    """Latents travel as bits, which no trainer rounds."""
    assert batch["latent"].dtype == torch.int32
    return batch["latent"].view(torch.float32)


def latent(value):
    """Any latent that shows a number."""
    return torch.full((4, 2, 2), float(value)) + torch.arange(4.0)[:, None, None] / 8


def batch_of(tree, cache, **settings):
    data = ImageFolder(str(tree), image_size=4, num_workers=0, batch_size=6, **settings)
    data.latents = cache
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    return batch


def fill(tree, cache, numbers=range(6)):
    """Encode the images of some numbers as `latent(number)`."""
    batch = batch_of(tree, cache)
    for image_id, digest in zip(batch["image_id"], batch["digests"], strict=True):
        if int(image_id[2]) in numbers:
            cache.write(digest, latent(int(image_id[2])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent_comes_back_and_takes_the_space_of_a_row(folder, dtype):
    cache = LatentCache(folder, 8, "encoder")
    assert cache.read("ab") is None
    assert not folder.exists()
    batch = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(2, 3)
    cache.write("ab", batch[3].requires_grad_())
    stored = cache.read("ab")
    assert stored.dtype == torch.float32
    assert torch.equal(stored, batch[3].float())
    (file,) = folder.rglob("*.safetensors")
    assert file.stat().st_size < 4 * 16 * 16 * 4 + 400


def test_a_cached_image_is_not_decoded(tree, folder):
    """Nothing could decode this one."""
    cache = LatentCache(folder, 4, "encoder")
    (tree / "a" / "0.png").write_bytes(b"garbage")
    cache.write(digest_of(b"garbage"), latent(7))
    batch = batch_of(tree, cache)
    assert torch.equal(floats(batch), latent(7)[None])
    assert batch["image_id"][-1] == "a/0.png"


@pytest.mark.parametrize("cached", [{5}, {0, 3, 5}, {0, 1, 2, 3, 4, 5}], ids=str)
def test_rows_of_a_mixed_batch_keep_their_ids_and_labels(tree, folder, cached):
    """Images to encode come first, then latents."""
    cache = LatentCache(folder, 4, "encoder")
    whole = batch_of(tree, None)
    pixels = dict(zip(whole["image_id"], whole["image"], strict=True))
    fill(tree, cache, cached)
    batch = batch_of(tree, cache)
    fresh = 6 - len(cached)
    assert [int(image_id[2]) for image_id in batch["image_id"]] == sorted(set(range(6)) - cached) + sorted(cached)
    assert batch["labels"] == [(int(image_id[2]) // 2,) for image_id in batch["image_id"]]
    assert batch["digests"] == [digest_of((tree / image_id).read_bytes()) for image_id in batch["image_id"]]
    for image_id, image in zip(batch["image_id"][:fresh], batch["image"], strict=True):
        assert torch.equal(image, pixels[image_id])
    for image_id, stored in zip(batch["image_id"][fresh:], floats(batch), strict=True):
        assert torch.equal(stored, latent(int(image_id[2])))


def test_changed_images_are_encoded_again_and_renamed_ones_are_not(tree, folder):
    cache = LatentCache(folder, 4, "encoder")
    fill(tree, cache)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tree / "b" / "3.png")
    (tree / "a" / "0.png").rename(tree / "c" / "9.png")
    batch = batch_of(tree, cache)
    assert batch["image_id"][0] == "b/3.png"
    assert batch["image"][0, :, 0, 0].tolist() == [1, 2, 3]
    assert batch["image_id"][-1] == "c/9.png"
    assert torch.equal(floats(batch)[-1], latent(0))


@pytest.mark.parametrize("other", [(5, "encoder"), (4, "encoder in bf16"), (44, "ncoder")], ids=str)
def test_entries_depend_on_size_encoder_and_content(folder, other):
    LatentCache(folder, 4, "encoder").write("ab", latent(1))
    moved = LatentCache(folder.rename(folder.with_name("moved")), 4, "encoder")
    assert torch.equal(moved.read("ab"), latent(1))
    assert moved.read("cd") is None
    # The entry of another image under this one's name.
    moved.write("cd", latent(2))
    moved._path("cd").replace(moved._path("ab"))
    assert moved.read("ab") is None
    assert LatentCache(moved.folder, *other).read("ab") is None


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
        lambda whole: save({"latent": latent(2)}),
    ],
    ids=["truncated", "one bit", "no metadata"],
)
def test_a_wrong_entry_is_reported_and_replaced(tree, folder, content, caplog):
    cache = LatentCache(folder, 4, "encoder")
    fill(tree, cache, {2})
    (file,) = folder.rglob("*.safetensors")
    changed = content(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    assert len(batch_of(tree, cache)["image"]) == 6
    assert f"{file} in the latent cache is " in caplog.text
    fill(tree, cache, {2})
    assert len(batch_of(tree, cache)["latent"]) == 1
    assert [path for path in folder.rglob("*") if path.is_file()] == [file]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(InputError, match=r"cannot write the latent cache .*; choose another latent_cache") as caught:
        LatentCache(tmp_path / "cache", 4, "encoder").write("abcd", latent(0))
    assert str(tmp_path / "cache") in str(caught.value)
