"""Image decoding: equal to PIL for valid files, one clear error for all others."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from bigain.data.reading import decode_image
from bigain.errors import InputError


def read_image(path, size):
    return decode_image(path.read_bytes(), str(path), size)


def picture(width, height, mode="RGB", seed=0):
    """Random colours with smooth structure."""
    small = Image.frombytes("RGB", (4, 5), random.Random(seed).randbytes(60))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def pixels(image):
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)
        .permute(2, 0, 1)
    )


def expected(image, size):
    """RGB, shorter side to `size` (PIL's bicubic is antialiased), centre cropped: what the paper's loaders do."""
    image = image.convert("RGB")
    shorter, longer = sorted(image.size)
    other = int(size * longer / shorter)
    width, height = (size, other) if image.width <= image.height else (other, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return pixels(image.crop((left, top, left + size, top + size)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.jpg"


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize(
    "dimensions",
    [(16, 16), (100, 75), (33, 90), (50, 49), (120, 17), (9, 7), (7, 40), (333, 500)],
    ids=str,
)
def test_resize_and_crop_equal_pil(path, dimensions, size):
    image = picture(*dimensions)
    image.save(path, "PNG")
    actual = read_image(path, size)
    assert actual.dtype == torch.uint8
    assert actual.shape == (3, size, size)
    assert torch.equal(actual, expected(image, size))


def test_downscaling_is_antialiased(path):
    """A one-pixel checkerboard becomes grey, not a moire of black and white."""
    board = Image.frombytes("L", (64, 64), bytes(255 * ((x + y) % 2) for y in range(64) for x in range(64)))
    board.save(path, "PNG")
    inside = read_image(path, 16)[:, 2:-2, 2:-2].int()
    assert (inside - 127).abs().max() <= 2


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "JPEG"),
        ("RGB", "BMP"),
    ],
)
def test_colour_modes_become_rgb_before_the_resize_with_any_file_name(path, mode, format):
    picture(60, 41, mode).save(path, format)
    with Image.open(path) as stored:
        assert torch.equal(read_image(path, 24), expected(stored.convert("RGB"), 24))


def test_a_palette_image_equals_its_rgb_image(path):
    """Resizing the palette's indices would give nearest neighbours."""
    image = picture(60, 41).quantize(16)
    image.save(path, "PNG")
    from_palette = read_image(path, 24)
    image.convert("RGB").save(path, "PNG")
    assert torch.equal(from_palette, read_image(path, 24))
    assert len(from_palette.flatten(1).unique(dim=1)[0]) > 16


def test_transparency_is_dropped_and_not_blended(path):
    image = picture(30, 30)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path, "PNG")
    assert torch.equal(read_image(path, 30), pixels(picture(30, 30)))


@pytest.mark.parametrize("dimensions", [(1, 1), (1, 5), (5, 1)], ids=str)
def test_one_pixel(path, dimensions):
    Image.new("RGB", dimensions, (10, 200, 30)).save(path, "PNG")
    actual = read_image(path, 12)
    assert actual.shape == (3, 12, 12)
    assert actual.flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]


@pytest.mark.parametrize(("format", "orientation"), [("PNG", 2), ("PNG", 8), ("JPEG", 6)])
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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0, 0.1, 0.9])
def test_a_truncated_file_is_an_error(path, format, part):
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(path, format)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"cannot be decoded.* subset file") as caught:
        read_image(path, 16)
    assert str(path) in str(caught.value)


def test_sixteen_bit_grey_is_not_resized_before_it_is_scaled(path):
    image = picture(60, 41, "L")
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path, "PNG")
    assert torch.equal(read_image(path, 24), expected(image, 24))


@pytest.mark.parametrize(
    ("mode", "format", "transparency"),
    [
        ("P", "PNG", 3),
        ("P", "PNG", bytes([0, 128, 255, 7])),
        ("P", "GIF", 2),
        ("L", "PNG", 7),
        ("RGB", "PNG", (1, 2, 3)),
        ("1", "PNG", 0),
    ],
    ids=str,
)
def test_transparency_of_a_colour_is_dropped(path, mode, format, transparency):
    image = picture(60, 41).quantize(16) if mode == "P" else picture(60, 41, mode)
    image.save(path, format, transparency=transparency)
    assert torch.equal(read_image(path, 24), expected(image.convert("RGB"), 24))


@pytest.mark.parametrize(("length", "upright"), [(50, False), (51, True), (3000, True), (3001, False)])
def test_a_strip_gives_its_centre(path, length, upright):
    """As if all of it had been resized, which takes gigabytes for longer strips."""
    image = picture(length, 1)
    image = Image.frombytes("RGB", (1, length), image.tobytes()) if upright else image
    image.save(path, "PNG")
    assert torch.equal(read_image(path, 16), expected(image, 16))


def test_a_long_strip_takes_little_memory(path):
    """Resized to 512 px, all of it would take 90 gigabytes."""
    Image.new("RGB", (120_000, 1), (9, 8, 7)).save(path, "PNG")
    assert read_image(path, 512).flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]


def test_harmless_damage_gives_no_warning(path):
    picture(20, 20).save(path, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0")
    assert read_image(path, 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("format", "old", "new"),
    [
        # The offset of the first strip as a rational number.
        ("TIFF", b"\x11\x01\x04\x00", b"\x11\x01\x05\x00"),
        pytest.param(
            *("AVIF", b"pitm", b"mtip"), marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")
        ),
    ],
)
def test_errors_of_parsers(path, format, old, new):
    picture(20, 20).save(path, format)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(path, 16)
