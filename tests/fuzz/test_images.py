"""Damaged images: pixels or an InputError that names the image, never another outcome."""

import io
import random
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, forms, fuzzed, naming, put
from PIL import Image, features

from bigain.data import ImageNet1K
from bigain.data.reading import decode_image

SIZE = 8
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
FORMATS += ["JPEG2000"] if features.check("jpg_2000") else []
FORMATS += ["AVIF"] if features.check("avif") else []


def encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    pixels = Image.frombytes("RGB", (17, 12), random.Random(0).randbytes(3 * 17 * 12))
    pixels.convert(mode).save(file, kind, **options)
    return file.getvalue()


VALID = {kind: encoded(kind) for kind in FORMATS}
VALID |= {"16-bit PNG": encoded("PNG", "I;16"), "palette PNG": encoded("PNG", "P", transparency=3)}
VALID |= {"CMYK TIFF": encoded("TIFF", "CMYK"), "LZW TIFF": encoded("TIFF", compression="tiff_lzw")}
VALID |= {"progressive JPEG": encoded("JPEG", progressive=True), "JPEG TIFF": encoded("TIFF", compression="jpeg")}


def decoded(content):
    pixels = None
    with naming("the/image.png cannot be decoded"):
        pixels = decode_image(content, "the/image.png", SIZE)
        assert pixels.shape == (3, SIZE, SIZE)
        assert pixels.dtype == torch.uint8
    return pixels


@pytest.mark.parametrize("kind", VALID)
def test_whole_images_are_decoded(kind):
    assert decoded(VALID[kind]) is not None


@fuzzed(120)
@given(st.sampled_from(list(VALID.values())).flatmap(damaged))
def test_damaged_images(content):
    decoded(content)


@fuzzed(25)
@given(*(st.sampled_from([0, 1, 17, 30_000, 65_535, 2**31 - 1, 2**32 - 1]) for _ in range(2)))
def test_headers_that_promise_any_size(width, height):
    header = b"IHDR" + struct.pack(">II", width, height) + VALID["PNG"][24:29]
    decoded(VALID["PNG"][:12] + header + struct.pack(">I", zlib.crc32(header)) + VALID["PNG"][33:])
    decoded(b"BM" + VALID["BMP"][2:18] + struct.pack("<II", width, height) + VALID["BMP"][26:])
    decoded(b"P6 %d %d 255\n" % (width, height) + bytes(64))
    decoded(VALID["GIF"][:6] + struct.pack("<HH", width % 65_536, height % 65_536) + VALID["GIF"][10:])


@pytest.fixture(scope="module")
def parquet():
    """A file of two row groups in Hugging Face's layout of ImageNet."""
    rows = [{"bytes": VALID["PNG"], "path": f"{i}.png"} for i in range(4)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(range(4), pa.int64())})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    return file.getvalue()


@fuzzed(30)
@given(st.data())
def test_damaged_parquet_files(tmp_path_factory, parquet, data):
    root = tmp_path_factory.mktemp("parquet")
    file = root / "validation-00000-of-00001.parquet"
    put(file, data.draw(damaged(parquet) | forms))
    imagenet = ImageNet1K(str(root), image_size=SIZE, num_workers=0, on_bad_image="skip")
    with naming(root):
        imagenet.setup("predict")
        batches = list(imagenet.predict_dataloader())
        seen = [image_id for batch in batches for image_id in (*batch["image_id"], *batch["failed"])]
        assert sorted(seen) == sorted(item.image_id for item in imagenet.items)
        assert all(str(file) in reason for batch in batches for reason in batch["failed"].values())
