"""Files are written whole or not at all."""

import errno
import os

import pytest

from bigain.data.selection import Item, read_subset
from bigain.errors import InputError
from bigain.runs.files import replacing, write_text
from bigain.runs.results import read_ids, write_ids


def test_any_id_in_images_txt_is_read_again_by_reports_and_by_a_subset(tmp_path):
    ids = ["plain/größe.jpg", "a\nb", "a\r\nb", "a\u2028b\x85", " blanks ", '"quoted"', '"half', "", "\\n"]
    write_ids(tmp_path, ids)
    assert read_ids(tmp_path) == ids
    items = [Item(image_id, (0,)) for image_id in ids]
    assert read_subset(items, tmp_path / "images.txt", "data") == items
    # Lists of others hold names as they are.
    (tmp_path / "mine.txt").write_text('"half\nplain/größe.jpg\n')
    assert len(read_subset(items, tmp_path / "mine.txt", "data")) == 2


def test_a_full_disk_is_one_message_and_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    match = r"cannot write .*a\.json: .*No space left.*; what is finished is kept"
    with pytest.raises(InputError, match=match), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
