"""The reader of image files: all modes that Pillow opens, no other format, and the resize and crop of PIL."""

import io
import os
import random

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from bigain.data import ImageFolder
from bigain.data.images import read_images
from bigain.data.reading import decode_image, opened, read_file, read_rgb
from bigain.data.selection import Item
from bigain.errors import InputError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = Image.merge("RGB", [Image.fromarray(GREY.T), Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())])


def saved(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def read(content):
    return np.asarray(read_rgb(content)).astype(int)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("1", "PNG"), ("L", "TIFF"), ("LA", "PNG"), ("P", "GIF"), ("PA", "TIFF"), ("RGB", "PPM"), ("RGBA", "PNG")],
        *[("CMYK", "TIFF"), ("YCbCr", "TIFF")],
    ],
)
def test_eight_bits_are_what_pillow_converts(mode, kind):
    stored = COLOURS.convert("P" if mode == "PA" else mode).convert(mode)
    content = saved(stored, kind)
    with opened(content) as image:
        assert image.mode == mode
    assert (read(content) == np.asarray(stored.convert("RGB"))).all()


def test_lab():
    profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    content = saved(ImageCms.profileToProfile(COLOURS, *profiles, outputMode="LAB"), "TIFF")
    # Saturated colours lose some digits.
    assert np.abs(read(content) - np.asarray(COLOURS)).mean() < 3


@pytest.mark.parametrize(
    ("levels", "kind", "mode"),
    [
        (GREY.astype("<u2") * 257, "PNG", "I;16"),
        (GREY.astype("<u2") * 257, "TIFF", "I;16"),
        (GREY.astype(">u2") * 257, "TIFF", "I;16B"),
        (GREY.astype("<i4") * 257, "PPM", "I"),
        (GREY.astype("<f4") / 255, "TIFF", "F"),
    ],
)
def test_grey_of_more_bits_is_scaled_by_every_reader(levels, kind, mode, tmp_path):
    if mode == "I;16B":
        content = saved(Image.frombytes(mode, (16, 16), levels.tobytes()), kind)
    else:
        content = saved(Image.fromarray(levels), kind)
    with opened(content) as image:
        assert image.mode == mode
    path = tmp_path / "image.png"
    path.write_bytes(content)
    expected = torch.from_numpy(GREY).expand(3, 16, 16)
    assert torch.equal(decode_image(content, "name", 16), expected)
    assert torch.equal(read_images([path])[0], expected)


def tiff(width, height, bits, content, photometric=1, sample_format=1):
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 160), (277, 1), (278, height)]
    tags += [(279, len(content)), (339, sample_format)]
    header = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little")
    entries = b"".join(n.to_bytes(2, "little") + b"\3\0\1\0\0\0" + v.to_bytes(4, "little") for n, v in tags)
    return (header + entries).ljust(160, b"\0") + content


@pytest.mark.parametrize(("levels", "bits", "kind"), [("u1", 8, 1), ("<u2", 16, 1), ("<f4", 32, 3)])
def test_white_is_zero(levels, bits, kind):
    content = np.array([[0, 1 if kind == 3 else 2**bits - 1]], levels).tobytes()
    assert read(tiff(2, 1, bits, content, 0, kind))[..., 0].tolist() == [[255, 0]]


def test_twelve_bits_are_scaled_by_their_own_white():
    levels = np.repeat(np.array([[0, 4095], [273, 2730]], np.uint16), 2, 1)
    # Two numbers of 12 bits in three bytes.
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in levels.reshape(-1, 2).tolist())
    assert read(tiff(4, 2, 12, packed))[..., 0].tolist() == [[0, 0, 255, 255], [17, 17, 170, 170]]


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (GREY.astype("<i4"), "32-bit integers, whose white is unknown"),
        (tiff(2, 1, 16, bytes(4), sample_format=2), "signed 16-bit integers"),
        (GREY.astype("<f4"), "outside 0 to 1"),
        (np.full((4, 4), np.nan, "<f4"), "outside 0 to 1"),
        (-GREY.astype("<f4"), "outside 0 to 1"),
    ],
)
def test_grey_whose_white_is_unknown_is_an_error(levels, words):
    with pytest.raises(InputError, match=f"image name cannot be decoded .*{words}.*save it with 8 or 16 bits"):
        decode_image(levels if isinstance(levels, bytes) else saved(Image.fromarray(levels), "TIFF"), "name", 16)


def test_postscript_in_a_jpg_starts_no_interpreter(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("an interpreter was started"))
    with pytest.raises(ValueError, match="not an image in a known format"):
        read(saved(COLOURS, "EPS"))


def test_pixels_are_limited(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        read(saved(COLOURS, "PNG"))


def test_a_pipe_or_a_device_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    os.symlink(os.devnull, tmp_path / "device.png")
    for name in ("image.png", "device.png"):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(tmp_path / name)
        data = ImageFolder(str(tmp_path))
        data.files = {name: tmp_path / name}
        with pytest.raises(InputError, match=rf"{tmp_path / name} cannot be read: not a regular file"):
            data.read_image(Item(name, (0,)))
        with pytest.raises(InputError, match=rf"cannot read {tmp_path / name}: not a regular file"):
            read_images([tmp_path / name])


def read_image(path, size):
    return decode_image(path.read_bytes(), str(path), size)


def picture(width, height, mode="RGB", seed=0):
    """Random colours with smooth structure."""
    small = Image.frombytes("RGB", (4, 5), random.Random(seed).randbytes(60))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def expected(image, size):
    """RGB, shorter side to `size` (PIL's bicubic is antialiased), centre cropped: what the paper's loaders do."""
    image = image.convert("RGB")
    shorter, longer = sorted(image.size)
    other = int(size * longer / shorter)
    width, height = (size, other) if image.width <= image.height else (other, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return pil_to_tensor(image.crop((left, top, left + size, top + size)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.jpg"


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("dimensions", [(16, 16), (100, 75), (33, 90), (50, 49), (7, 40)], ids=str)
def test_resize_and_crop_equal_pil(path, dimensions, size):
    image = picture(*dimensions)
    image.save(path, "PNG")
    actual = read_image(path, size)
    assert actual.dtype == torch.uint8
    assert actual.shape == (3, size, size)
    assert torch.equal(actual, expected(image, size))


@pytest.mark.parametrize(("format", "orientation"), [("PNG", 2), ("JPEG", 6)])
def test_exif_orientation_is_ignored(path, format, orientation):
    image = picture(60, 40)
    image.save(path, format)
    plain = read_image(path, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, format, exif=exif)
    with Image.open(path) as stored:
        assert not torch.equal(expected(ImageOps.exif_transpose(stored), 24), plain)
    assert torch.equal(read_image(path, 24), plain)


@pytest.mark.parametrize(
    ("mode", "format", "transparency"),
    [("P", "PNG", 3), ("P", "PNG", bytes([0, 128, 255, 7])), ("P", "GIF", 2), ("RGB", "PNG", (1, 2, 3))],
    ids=str,
)
def test_transparency_of_a_colour_is_dropped(path, mode, format, transparency):
    image = picture(60, 41).quantize(16) if mode == "P" else picture(60, 41, mode)
    image.save(path, format, transparency=transparency)
    assert torch.equal(read_image(path, 24), expected(image.convert("RGB"), 24))


def test_a_long_strip_is_an_error(path):
    image = picture(100, 1)
    image.save(path, "PNG")
    assert torch.equal(read_image(path, 16), expected(image, 16))
    picture(1, 101).save(path, "PNG")
    with pytest.raises(InputError, match="a strip of 1 x 101 px"):
        read_image(path, 16)


def test_harmless_damage_gives_no_warning(path):
    picture(20, 20).save(path, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0")
    assert read_image(path, 16).shape == (3, 16, 16)
