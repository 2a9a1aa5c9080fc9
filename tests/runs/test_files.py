"""Files are written whole or not at all."""

import errno
import os

import pytest

from bigain.errors import InputError
from bigain.runs.files import replace_file


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    replace_file(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message_and_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def write(temporary):
        temporary.write_text("aft")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"cannot write .*a\.json: .*No space left.*; what is finished is kept"):
        replace_file(path, write)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
