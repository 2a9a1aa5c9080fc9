"""Encodings of generated images, and file names from image ids, which never leave the folder."""

import io
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from bigain.data.images import decode_files, encode_images, quantise, read_images
from bigain.errors import InputError
from bigain.runs.files import sample_path

IDS = ["a", "a/b", "../../x", "..", ".", "...", "/abs", "//abs", "a/../../b", "a/../b", "b", "", "/", "a//b", "a/"]
IDS += ["a/%", "%", "%2E", "%2E%2E", "C:/x", "x\x00y", "x\ny", "~/x", " ", ". ", "a.", "é", "e\u0301", "CON", "\u2028"]
IDS += ["名" * 80, "名" * 81, "." * 300, "x" * 255, "x" * 255 + "y", "a.png", "a.png/b", "a.jpg/b", "a.png.tmp/b"]


@pytest.fixture(scope="module")
def noise():
    return torch.randint(256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_quantising_rounds_or_truncates_and_clamps():
    pixels = torch.tensor([-1.5, -1.0, -1 + 0.9 / 127.5, -1 + 1.4 / 127.5, 1.0, 2.0])
    assert quantise(pixels, "png").tolist() == [0, 0, 1, 1, 255, 255]
    assert quantise(pixels, "none").tolist() == [0, 0, 1, 1, 255, 255]
    assert quantise(pixels, "jpeg100_truncate").tolist() == [0, 0, 0, 1, 255, 255]
    assert quantise(pixels.bfloat16(), "png").dtype == torch.uint8


def test_png_is_lossless(noise):
    files = encode_images(noise, "png")
    assert torch.equal(decode_files(files), noise)
    assert Image.open(io.BytesIO(files[0])).format == "PNG"


def test_jpeg_has_quality_100(noise):
    assert encode_images(noise, "none") == []
    files = encode_images(noise, "jpeg100_truncate")
    image = Image.open(io.BytesIO(files[1]))
    assert image.format == "JPEG"
    assert all(set(table) == {1} for table in image.quantization.values())
    assert decode_files(files).shape == noise.shape


@pytest.mark.parametrize("image_format", ["png", "jpeg100_truncate"])
def test_plain_ids_are_unchanged_and_distinct_ids_have_distinct_paths(image_format):
    for image_id in ("test/000001", "images/Abyssinian_7.jpg", "000000397133", "a b/c-d_e~f"):
        assert sample_path(Path("run"), image_id, "png") == Path("run/samples") / f"{image_id}.png"
    paths = {image_id: sample_path(Path("run"), image_id, image_format) for image_id in IDS}
    for first, second in combinations(IDS, 2):
        assert paths[first] != paths[second], (first, second)
        assert paths[first] not in paths[second].parents, (first, second)
        assert paths[second] not in paths[first].parents, (first, second)


def test_reading_names_the_file_that_cannot_be_read(tmp_path, noise):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, content in zip(paths, encode_images(noise, "png"), strict=True):
        path.write_bytes(content)
    assert torch.equal(read_images(paths), noise)
    whole = paths[1].read_bytes()
    for content in (b"", b"no image", whole[:200], whole[:-40]):
        paths[1].write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*1\.png"):
            read_images(paths)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"cannot read .*1\.png"):
        read_images(paths)
