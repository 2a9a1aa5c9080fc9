"""Files are written whole or not at all."""

import errno
import os

import pytest

from bigain.errors import InputError
from bigain.runs.files import replacing, write_text


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "folder/a.json"
    for text in ("before", "after"):
        write_text(path, text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_message_and_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    match = r"cannot write .*a\.json: .*No space left.*; what is finished is kept"
    with pytest.raises(InputError, match=match), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
