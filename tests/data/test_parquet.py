"""Parquet files of Hugging Face: rows with any grouping, and damaged files, which errors name."""

import pickle
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigain.data.parquet import read_rows
from bigain.errors import InputError

CLASSES = ["ant", "bee", "cat"]
FEATURES = {"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "label": pa.int64()}
CONTENTS = {f"image{i}": bytes([i]) * 4000 for i in range(7)}
LABELS = [2, 0, 1, 1, 0, 2, 2]


def write(path, columns, features=FEATURES, group=3):
    table = pa.table({name: pa.array(values, features.get(name)) for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=group)
    return path


def images(names=CONTENTS):
    return [{"bytes": CONTENTS[name], "path": f"{name}.jpg"} for name in names]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "validation-00000-of-00001.parquet"


@pytest.mark.parametrize("group", [1, 3, 100])
def test_images_and_labels_of_every_row(path, group):
    write(path, {"image": images(), "label": LABELS}, group=group)
    rows = read_rows([path], CLASSES)
    assert [(name, row.label) for name, row in rows.items()] == [
        (name, CLASSES[label]) for name, label in zip(CONTENTS, LABELS, strict=True)
    ]
    for name in random.Random(0).choices(list(CONTENTS), k=20):
        assert rows[name].read_bytes() == CONTENTS[name]
    assert pickle.loads(pickle.dumps(rows)) == rows
    assert len(pickle.dumps(rows)) < sum(map(len, CONTENTS.values()))


def test_further_columns_and_other_number_types(path):
    kind = pa.struct([("path", pa.large_string()), ("width", pa.int32()), ("bytes", pa.large_binary())])
    rows = [{**image, "width": 3} for image in images()]
    write(path, {"id": LABELS, "label": LABELS, "image": rows}, {"image": kind, "label": pa.int16()})
    rows = read_rows([path], CLASSES)
    assert {name: rows[name].read_bytes() for name in rows} == CONTENTS


def test_opening_reads_no_image(path):
    """The pages of the images are destroyed; labels and names are still read."""
    write(path, {"image": images(), "label": LABELS})
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(3)]
        column = next(column for column in columns if column.path_in_schema == "image.bytes")
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    rows = read_rows([path], CLASSES)
    assert list(rows) == list(CONTENTS)
    with pytest.raises(
        InputError, match=r"row group 1, row 2 \(image5\) cannot be read (?s:.*)download the file again"
    ) as caught:
        rows["image5"].read_bytes()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "features"),
    [
        ({"image": images(), "label": [*LABELS[:4], 3, 2, 2]}, FEATURES),
        ({"image": images(), "label": [*LABELS[:4], -1, 2, 2]}, FEATURES),
        ({"image": images(), "label": [*LABELS[:4], None, 2, 2]}, FEATURES),
        ({"image": [None], "label": [0]}, FEATURES),
        ({"image": [b"image"], "label": [0]}, {"image": pa.binary()}),
        ({"label": [0]}, {}),
    ],
    ids=["label too large", "negative label", "no label", "no image", "no struct", "no column"],
)
def test_other_content_is_refused(path, columns, features):
    write(path, columns, features)
    with pytest.raises(InputError, match="is not a parquet file of Hugging Face's imagenet-1k") as caught:
        read_rows([path], CLASSES)
    assert str(path) in str(caught.value)


def test_a_damaged_file(path):
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(InputError, match=r"is not a parquet file of Hugging Face's imagenet-1k .*; download it again"):
        read_rows([path], CLASSES)


def test_an_image_without_bytes(path):
    """Only this one cannot be read."""
    image = {"bytes": None, "path": "/home/user/1.jpg"}
    write(path, {"image": [*images(["image3", "image4"]), image], "label": [0, 1, 2]})
    rows = read_rows([path], CLASSES)
    *others, last = rows
    with pytest.raises(InputError, match=r"row group 0, row 2 \(1\) has no bytes") as caught:
        rows[last].read_bytes()
    assert str(path) in str(caught.value)
    assert [rows[name].read_bytes() for name in others] == [CONTENTS["image3"], CONTENTS["image4"]]


def test_labels_that_contradict_the_file_names(path):
    """The number of classes is the same in any order."""
    wnids = ("n01440764", "n01443537")
    named = [{"bytes": b"", "path": f"ILSVRC2012_val_0000000{i}_{wnid}.JPEG"} for i, wnid in enumerate(wnids)]
    write(path, {"image": named, "label": [0, 1]})
    assert [row.label for row in read_rows([path], wnids).values()] == list(wnids)
    write(path, {"image": named, "label": [1, 0]})
    with pytest.raises(InputError, match=r"_n01440764.JPEG has the label 1, expected classes in wnid order"):
        read_rows([path], wnids)


def test_an_image_in_two_files(path):
    write(path, {"image": images(["image3"]), "label": [0]})
    copy = path.with_name("copy.parquet")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(InputError) as caught:
        read_rows([path, copy], CLASSES)
    row = "row group 0, row 0 (image3)"
    assert str(caught.value) == f"{copy}, {row} is the same image as {path}, {row}; remove one of the files"


def test_bytes_that_are_text(path):
    write(path, {"image": [{"bytes": "text", "path": "1.jpg"}], "label": [0]}, features={})
    with pytest.raises(InputError, match=r"row 0 \(1\) has no bytes"):
        read_rows([path], CLASSES)["1"].read_bytes()
