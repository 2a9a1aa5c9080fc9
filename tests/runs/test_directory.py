"""What a run may delete, what it follows, and what it leaves behind."""

from unittest.mock import Mock

import pytest
from jsonargparse import Namespace
from records import record

from bigain.errors import InputError
from bigain.runs.configuration import fingerprint
from bigain.runs.directory import run_directory

CONFIG = Namespace(seed=0, overwrite=False, extend=False)
OVERWRITE = Namespace(seed=0, overwrite=True, extend=False)


def test_masks_that_are_made_again_change_the_hash(tmp_path):
    masks, hashes = tmp_path / "masks.safetensors", set()
    compressor = Namespace(class_path="bigain.compressors.DiPGO", init_args=Namespace(ratio=0.5, masks=str(masks)))
    for content in ("", "one", "two"):
        if content:
            masks.write_text(content)
        hashes.add(fingerprint(Namespace(compressor=compressor)))
        hashes.add(fingerprint(Namespace(trainer=Namespace(callbacks=[compressor]))))
    assert len(hashes) == 6


@pytest.fixture
def run(tmp_path):
    """A directory with one finished image of a generation, one that a kill left without its line, and others' files."""
    folder = tmp_path / "run"
    with run_directory(folder, CONFIG):
        pass
    log = record("a").to_json() + "\n"
    texts = {"predictions/rank-0.jsonl": log, "images.txt": "a\nb/c\n", "samples/a.png": "", "samples/b/c.png": ""}
    texts |= {"predictions/.predictions.npz.17.tmp": "", "samples/b/.c.png.17.tmp": "", "results.json": "{}"}
    texts |= {"pictures/salience_image_3.png": "", "pictures/tokens_image_3.png": ""}
    mine = {"samples/holiday.png": "", "samples/b/mine.jpg": "", "pictures/mine.png": "", "notes.txt": "mine"}
    for name, text in {**texts, **mine}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder, mine


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock-0"}


@pytest.mark.parametrize("damaged", [False, True])
def test_overwriting_deletes_what_bigain_wrote_and_nothing_else(run, damaged):
    folder, mine = run
    if damaged:
        (folder / "predictions/rank-0.jsonl").write_text("x\n")
    with run_directory(folder, OVERWRITE):
        (folder / "predictions/rank-0.jsonl").write_text("new\n")
    assert files(folder) == {*mine, "identity.json", "predictions/rank-0.jsonl"}


@pytest.mark.parametrize("name", ["samples/deep", "predictions/rank-0.jsonl"])
def test_nothing_is_written_or_deleted_through_a_link(tmp_path, name):
    other, folder = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    (other / "rank-0.jsonl").write_text("theirs")
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(other / "rank-0.jsonl" if name.endswith("jsonl") else other)
    (folder / "identity.json").write_text("{}")
    with pytest.raises(InputError, match=f"{name} is a symbolic link"), run_directory(folder, OVERWRITE):
        pass
    assert (other / "rank-0.jsonl").read_text() == "theirs"


@pytest.mark.parametrize("existed", [False, True])
def test_a_run_that_is_refused_leaves_nothing_and_one_with_images_everything(tmp_path, existed, monkeypatch):
    folder = tmp_path / "runs/name"
    with monkeypatch.context() as full:
        full.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(InputError, match=r"cannot write .*identity\.json: No space"), run_directory(folder, CONFIG):
            pass
    assert not folder.exists()
    if existed:
        folder.mkdir(parents=True)
    log = folder / "predictions/rank-0.jsonl"

    def refused(content):
        log.parent.mkdir(exist_ok=True)
        log.write_text(content)
        raise InputError("no weights")

    for content, left in (("", False), ("line\n", True), ("", False)):
        with pytest.raises(InputError, match="no weights"), run_directory(folder, CONFIG):
            refused(content)
        assert folder.exists() == left


def test_damaged_settings_do_not_advise_to_delete_images(tmp_path):
    with run_directory(tmp_path, CONFIG):
        pass
    (tmp_path / "identity.json").write_text("")
    with pytest.raises(InputError, match=r"identity\.json is damaged") as caught, run_directory(tmp_path, CONFIG):
        pass
    assert "overwrite" not in str(caught.value)
