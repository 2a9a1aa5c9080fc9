"""Parquet files of Hugging Face: rows with any grouping, and damaged files, which errors name."""

import json
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


def described(names):
    return json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})


def write(path, columns, features=FEATURES, description=None, group=3):
    table = pa.table({name: pa.array(values, features.get(name)) for name, values in columns.items()})
    pq.write_table(
        table.replace_schema_metadata(description and {"huggingface": description}), path, row_group_size=group
    )
    return path


def images(names=CONTENTS):
    return [{"bytes": CONTENTS[name], "path": f"{name}.jpg"} for name in names]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "validation-00000-of-00001.parquet"


@pytest.mark.parametrize(("group", "description"), [(1, None), (3, described(CLASSES)), (100, '{"info": null}')])
def test_images_and_labels_of_every_row(path, group, description):
    write(path, {"image": images(), "label": LABELS}, description=description, group=group)
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


def test_images_without_a_name_are_numbered_in_their_file(path):
    write(path, {"image": [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": ""}], "label": [0, 1]}, group=1)
    rows = read_rows([path], CLASSES)
    assert {name: rows[name].read_bytes() for name in rows} == {
        f"{path.stem}/00000/00000": b"a",
        f"{path.stem}/00001/00000": b"b",
    }


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


def refusal(*paths):
    with pytest.raises(InputError) as caught:
        read_rows(paths, CLASSES)
    message = str(caught.value)
    assert str(paths[-1]) in message
    return message


@pytest.mark.parametrize("content", [lambda whole: whole[: len(whole) // 2], lambda whole: b"version https://git-lfs"])
def test_files_that_are_not_parquet(path, content):
    write(path, {"image": images(), "label": LABELS})
    path.write_bytes(content(path.read_bytes()))
    assert "is not a readable parquet file" in refusal(path)


@pytest.mark.parametrize(
    "features",
    [
        {"label": pa.int64()},
        {"image": FEATURES["image"], "label": pa.float64()},
        {"image": pa.binary(), "label": pa.int64()},
        {"image": pa.struct([("bytes", pa.string()), ("path", pa.string())]), "label": pa.int64()},
    ],
    ids=str,
)
def test_missing_columns_and_columns_of_a_different_type(path, features):
    write(path, {name: [None] for name in features}, features)
    columns = ", ".join(f"{name}: {kind}" for name, kind in features.items())
    assert f"has the columns {columns}; expected image (bytes, path) and label (an integer)" in refusal(path)


@pytest.mark.parametrize("label", [-1, 3, None])
def test_a_label_out_of_range(path, label):
    write(path, {"image": images(), "label": [*LABELS[:4], label, *LABELS[5:]]})
    assert f"row group 1, row 1: label {label}, not in 0..2" in refusal(path)


def test_labels_of_different_classes(path):
    write(path, {"image": images(), "label": LABELS}, description=described(["ant", "bee"]))
    assert "has labels of 2 classes; expected ImageNet-1K's 3" in refusal(path)


def test_an_image_in_two_files(tmp_path):
    first = write(tmp_path / "a.parquet", {"image": images(["image0", "image1"]), "label": [0, 1]})
    second = write(tmp_path / "b.parquet", {"image": images(["image2", "image1"]), "label": [0, 1]})
    assert f"{second} and {first} both hold image image1; remove one" in refusal(first, second)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "/home/user/1.jpg"}], ids=["null", "path-only"])
def test_an_image_without_bytes(path, image):
    """Only this one cannot be read."""
    write(path, {"image": [*images(["image3", "image4"]), image], "label": [0, 1, 2]})
    rows = read_rows([path], CLASSES)
    *others, last = rows
    with pytest.raises(InputError, match=r"row group 0, row 2 \(.*\) has no bytes") as caught:
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
    with pytest.raises(InputError, match=r"row 0: .*_n01440764.JPEG has the label 1, which is n01443537"):
        read_rows([path], wnids)
