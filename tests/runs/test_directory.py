"""What a run may delete, what it follows, and what it leaves behind."""

import shutil
from contextlib import suppress
from unittest.mock import Mock

import pytest
from jsonargparse import Namespace
from records import record

from bigain.errors import InputError
from bigain.runs.configuration import fingerprint
from bigain.runs.directory import run_directory

CONFIG = Namespace(seed=0, overwrite=False, extend=False)
OTHER = Namespace(seed=1, overwrite=False, extend=False)
OVERWRITE = Namespace(seed=0, overwrite=True, extend=False)


def test_a_setting_that_was_added_changes_no_hash_while_it_is_null():
    def hashed(section, **arguments):
        return fingerprint(Namespace({section: Namespace(init_args=Namespace(**arguments))}))

    assert hashed("data") == hashed("data", classes=None) != hashed("data", classes="a.txt")
    assert hashed("model") == hashed("model", noises=1, bands=None)
    assert len({hashed("model"), hashed("model", noises=2), hashed("model", bands=8)}) == 3


@pytest.mark.parametrize("place", [lambda one: {"compressor": one}, lambda one: {"trainer": {"callbacks": [one]}}])
def test_an_argument_that_was_added_to_a_class_changes_no_hash_at_its_default(place, tmp_path):
    def hashed(kind, **arguments):
        class_path, settings = f"bigain.compressors.{kind}", Namespace(ratio=0.5, **arguments)
        config = place(Namespace(class_path=class_path, init_args=settings))
        return fingerprint(Namespace({key: Namespace(v) if isinstance(v, dict) else v for key, v in config.items()}))

    score = "bigain.tokens.scores.laplacian_l1"
    assert hashed("ABM") == hashed("ABM", score=score, quantile_of="cells") != hashed("ABM", score=f"{score}2")
    assert hashed("LGTM") == hashed("LGTM", source_quantile=None) != hashed("LGTM", source_quantile=0.9)
    assert hashed("LGTM") != hashed("LGTM", score=score)
    assert hashed("IEKVD") == hashed("IEKVD", aligned=False) != hashed("IEKVD", aligned=True)
    masks, hashes = tmp_path / "masks.safetensors", set()
    for content in ("", "one", "two"):
        if content:
            masks.write_text(content)
        hashes.add(hashed("DiPGO", masks=str(masks)))
    assert len(hashes) == 3


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


def test_a_run_is_overwritten_by_the_first_image_of_another_only(run):
    folder, _ = run
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with suppress(InterruptedError), run_directory(folder, OVERWRITE):
        (folder / "predictions/model.json").touch()
        raise InterruptedError
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    # A kill leaves both runs there; the next one restores the old, too, and finds it of another configuration.
    with run_directory(folder, OVERWRITE):
        shutil.copytree(folder, folder.parent / "killed")
    with pytest.raises(InputError, match="seed: 0 -> 1"), run_directory(folder.parent / "killed", OTHER):
        pass
    assert {name: (folder.parent / "killed" / name).read_bytes() for name in files(folder.parent / "killed")} == before


@pytest.mark.parametrize(
    "name", ["predictions", "samples", "samples/deep", "pictures", "tensorboard", "predictions/rank-0.jsonl"]
)
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
