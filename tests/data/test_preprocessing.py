"""Reading images: the result of PIL on ordinary files, one clear error on all others."""

import random

import pytest
import torch
from PIL import Image, ImageOps

from bigain.data.preprocessing import read_image
from bigain.errors import InputError


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
    [(16, 16), (64, 64), (100, 75), (75, 100), (33, 90), (50, 49), (120, 17), (9, 7), (7, 40), (333, 500)],
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
def test_colour_modes_become_rgb_before_the_resize_whatever_the_name_says(path, mode, format):
    picture(60, 41, mode).save(path, format)
    with Image.open(path) as stored:
        assert torch.equal(read_image(path, 24), expected(stored.convert("RGB"), 24))


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_has_three_equal_channels(path, mode):
    picture(30, 40, mode).save(path, "PNG")
    red, green, blue = read_image(path, 24)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
    assert len(red.unique()) > 1


def test_a_palette_image_is_read_like_its_colours(path):
    """Resizing the palette's indices instead would give nearest neighbours."""
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


def test_cmyk_keeps_its_colours(path):
    Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(path, "JPEG")
    red, green, blue = read_image(path, 8).float().mean((1, 2)).tolist()
    assert red < 10
    assert min(green, blue) > 245


@pytest.mark.parametrize("dimensions", [(1, 1), (1, 5), (5, 1)], ids=str)
def test_one_pixel(path, dimensions):
    Image.new("RGB", dimensions, (10, 200, 30)).save(path, "PNG")
    actual = read_image(path, 12)
    assert actual.shape == (3, 12, 12)
    assert actual.flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_ignored(path, orientation):
    image = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, "PNG", exif=exif)
    with Image.open(path) as stored:
        assert not torch.equal(expected(ImageOps.exif_transpose(stored), 24), expected(image, 24))
    assert torch.equal(read_image(path, 24), expected(image, 24))


def test_exif_orientation_of_a_jpeg_is_ignored(path):
    image = picture(60, 40)
    image.save(path, "JPEG")
    plain = read_image(path, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, "JPEG", exif=exif)
    assert torch.equal(read_image(path, 24), plain)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(path, format, part):
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(path, format)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(path, 16)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<html>404</html>" * 99],
    ids=["empty", "zero", "text", "jpeg-magic", "png-magic", "gif-magic", "html"],
)
def test_other_bytes_are_an_error(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be decoded") as caught:
        read_image(path, 16)
    assert str(path) in str(caught.value)
    assert "subset" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_missing_file_is_an_error(path):
    with pytest.raises(InputError, match="does not exist") as caught:
        read_image(path, 16)
    assert str(path) in str(caught.value)


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(InputError) as caught:
        read_image(tmp_path, 16)
    assert str(tmp_path) in str(caught.value)


def test_an_enormous_image_is_an_error(path, monkeypatch):
    picture(40, 40).save(path, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="exceeds limit"):
        read_image(path, 16)
