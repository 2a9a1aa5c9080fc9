"""Reference statistics: what is kept, what is refused, and the command that makes them."""

import io
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from program import bigain

from bigain.commands.reference import reference
from bigain.data import ImageNet1K, ShapeTextures
from bigain.data.parquet import _read_images
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.frechet import frechet_distance
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.tasks.references import images_below, images_of, reference_of

X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "made" / "reference.npz"
    ReferenceStatistics(Moments.of([X]), "torchmetrics", "ab" * 32, "thirty of Müller's images", X[:7]).save(path)
    return path


def test_what_is_saved_is_read_back(saved):
    reference = ReferenceStatistics.load(saved, "torchmetrics", dimension=5, sha256="ab" * 32)
    assert reference.moments.n == 30
    assert (reference.protocol, reference.sha256) == ("torchmetrics", "ab" * 32)
    assert reference.source == "thirty of Müller's images"
    np.testing.assert_array_equal(reference.moments.mean, Moments.of([X]).mean)
    np.testing.assert_array_equal(reference.moments.covariance, Moments.of([X]).covariance)
    np.testing.assert_array_equal(reference.features, X[:7])
    assert [path.name for path in saved.parent.iterdir()] == ["reference.npz"]
    with pytest.raises(InputError, match="cannot write /dev/null/a/b: Not a directory; choose another file"):
        reference.save("/dev/null/a/b")


def test_pytorch_fid_reads_ours_and_we_read_its(saved, tmp_path):
    # As its two functions do.
    with np.load(saved) as file:
        mu, sigma = file["mu"][:], file["sigma"][:]
    theirs = tmp_path / "theirs.npz"
    np.savez_compressed(theirs, mu=mu, sigma=sigma)
    reference = ReferenceStatistics.load(theirs, "pytorch-fid", sha256="cd" * 32)
    assert reference.moments.n is None
    assert reference.features is None
    assert frechet_distance(reference.moments, Moments.of([X])) == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match=r"made with protocol pytorch-fid \(it names no protocol.* not torchmetrics"):
        ReferenceStatistics.load(theirs, "torchmetrics")
    # One read from there is still of unknown size when written again.
    reference.save(tmp_path / "again.npz")
    assert ReferenceStatistics.load(tmp_path / "again.npz", "pytorch-fid").moments.n is None


def test_another_protocol_dimension_or_network_is_refused(saved):
    with pytest.raises(InputError, match="made with protocol torchmetrics, not pytorch-fid; distances across"):
        ReferenceStatistics.load(saved, "pytorch-fid")
    with pytest.raises(InputError, match="features of d = 5, expected d = 2048"):
        ReferenceStatistics.load(saved, "torchmetrics", dimension=2048)
    with pytest.raises(InputError, match=r"weights abababab\.\.\., the extractor has cdcdcdcd"):
        ReferenceStatistics.load(saved, "torchmetrics", sha256="cd" * 32)


def test_damaged_files_are_refused(saved, tmp_path):
    np.save(tmp_path / "lone.npy", np.zeros(3))
    with pytest.raises(InputError, match="cannot be used"):
        ReferenceStatistics.load(tmp_path / "lone.npy", "pytorch-fid")
    with pytest.raises(InputError, match=r"none.npz does not exist; make it with `bigain reference`"):
        ReferenceStatistics.load(tmp_path / "none.npz", "pytorch-fid")
    content = saved.read_bytes()
    middle = bytearray(content)
    middle[len(middle) // 5] ^= 0xFF
    for damaged in (b"", b"no archive", content[: len(content) // 2], bytes(middle)):
        saved.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be used"):
            ReferenceStatistics.load(saved, "torchmetrics")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "has no sigma"),
        ({"mu": np.zeros(3), "sigma": np.array([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]])}, "not a covariance"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "not a covariance"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((3, 3))}, "at least 4 images"),
    ],
)
def test_other_content_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ReferenceStatistics.load(tmp_path / "odd.npz", "pytorch-fid")


def test_an_impossible_size_in_a_header_is_one_message(tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, sigma=np.eye(3))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + b"\n"
    with ZipFile(path, "a") as archive:
        archive.writestr("mu.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(24))
    with pytest.raises(InputError, match="cannot be used") as caught:
        ReferenceStatistics.load(path, "pytorch-fid")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n", "warned"), [(20, True), (64, True), (65, False), (None, False)])
def test_a_reference_of_few_images_is_reported(tmp_path, caplog, n, warned):
    ReferenceStatistics(Moments(n, np.zeros(64), np.eye(64)), "stand-in").save(tmp_path / "few.npz")
    ReferenceStatistics.load(tmp_path / "few.npz", "stand-in")
    assert (f"few.npz is of {n} images for 64 features; distances to it are too high" in caplog.text) == warned


def test_other_members_are_not_read(tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), pool=np.array([{}]))
    with ZipFile(path, "a") as archive:
        archive.writestr("more.npy", b"no array")
        archive.writestr("notes.txt", b"")
    assert ReferenceStatistics.load(path, "pytorch-fid").moments.mean.tolist() == [0, 0, 0]


class Means(FeatureExtractor):
    """Mean of each channel: depends on what was read, and on nothing else."""

    protocol, dimension = "means", 3

    def read(self):
        return torch.nn.Identity(), "ef" * 32

    def features(self, images):
        return images.float().mean((2, 3))


@pytest.fixture
def photos(tmp_path):
    """Eleven images of three sizes in two folders, a grey one of 16 bits and a transparent one among them."""
    draw = np.random.default_rng(1)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    means = []
    for i in range(11):
        pixels = draw.integers(256, size=[(6, 4), (4, 6), (5, 5)][i % 3] + (3,), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if i == 4:
            image = image.convert("L")
        if i == 5:
            image.putalpha(128)
        means.append(np.asarray(image.convert("RGB"), np.float64).mean((0, 1)))
        if i == 4:
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image.save((folder / "more" if i % 2 else folder) / f"{i}.png")
    (folder / "notes.mat").touch()
    return folder, np.stack(means)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_statistics_of_a_folder(photos, batch_size, monkeypatch):
    monkeypatch.setattr("bigain.tasks.references._BATCH", batch_size)
    folder, means = photos
    reference = reference_of(images_below(folder), "photos", Means(), features=6)
    assert reference.moments.n == 11
    np.testing.assert_allclose(reference.moments.mean, means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(reference.moments.covariance, np.cov(means, rowvar=False), rtol=1e-5)
    assert (reference.protocol, reference.sha256) == ("means", "ef" * 32)
    assert reference.source == "photos, 11 images"
    # The same six of them, whatever the batches.
    whole = reference_of(images_below(folder), "", Means(), features=100).features
    assert whole.shape == (11, 3)
    np.testing.assert_allclose(np.sort(whole, 0), np.sort(means, 0), rtol=1e-6)
    chosen = np.sort(np.random.default_rng(0).permutation(11)[:6])
    np.testing.assert_allclose(reference.features, whole[chosen], rtol=1e-6)
    assert reference_of(images_below(folder), "", Means(), features=0).features is None


def test_images_that_cannot_be_read(photos, tmp_path):
    folder, _ = photos
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"torn.png cannot be read"):
        reference_of(images_below(folder), "", Means(), features=0)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(InputError, match="no images"):
        images_below(tmp_path / "empty")


def test_the_command_writes_a_file_or_says_what_is_wrong(photos, tmp_path):
    folder, few, out = photos[0], tmp_path / "few", tmp_path / "out.npz"
    few.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32)).save(few / f"{i}.png")
    for args, message in (
        ((folder, out, "--weights", "none.pth"), "none.pth (from `weights`)"),
        ((tmp_path / "absent", out), "no folder"),
        ((folder, tmp_path / "out.npy"), "must end in .npz"),
        ((folder, out, "--features", "-1"), "4 images, and --features 0 or at least 4, not 11 and -1"),
        ((folder, out, "--features", "3"), "--features 0 or at least 4, not 11 and 3"),
        ((few, out), "a reference takes at least 4 images"),
    ):
        ended = bigain("reference", *map(str, args))
        assert ended.returncode == 2
        assert message in ended.stderr
    assert not out.exists()
    (tmp_path / "shapes").mkdir()
    for i in range(11):
        Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / "shapes" / f"{i}.png")
    ended = bigain("reference", str(tmp_path / "shapes"), str(out), "--protocol", "shapes-features")
    assert ended.returncode == 0, ended.stderr
    assert f"{out}: n = 11, shapes-features, weights sha256 " in ended.stdout
    assert ReferenceStatistics.load(out, "shapes-features").moments.n == 11


def test_images_of_a_dataset_in_parquet_files(photos, tmp_path):
    """Those that the selection names, at their native size, whatever the order of the rows."""
    folder, means = photos
    files = {i: next(folder.rglob(f"{i}.png")).read_bytes() for i in range(11)}
    order = [7, 3, 10, 0, 5, 1, 9, 2, 8, 4, 6]
    rows = [{"bytes": files[i], "path": f"ILSVRC2012_val_{i + 1:08d}.JPEG"} for i in order]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": order})
    pq.write_table(table, tmp_path / "validation-00000-of-00001.parquet", row_group_size=4)
    data = ImageNet1K(root=str(tmp_path), limit=8)
    images = images_of(data)
    chosen = [item.labels[0] for item in data.items]
    assert len(images) == len(chosen) == 8
    found = reference_of(images, "ImageNet", Means(), features=0)
    assert (found.source, found.moments.n) == ("ImageNet, 8 images", 8)
    np.testing.assert_allclose(found.moments.mean, means[chosen].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.moments.covariance, np.cov(means[chosen], rowvar=False), rtol=1e-5)
    rows[order.index(chosen[0])]["bytes"] = b"no image"
    damaged = pa.table({"image": pa.array(rows, kind), "label": order})
    _read_images.cache_clear()
    pq.write_table(damaged, tmp_path / "validation-00000-of-00001.parquet", row_group_size=4)
    with pytest.raises(InputError, match=r"image .*row group 0, row \d .*cannot be read \(not an image"):
        reference_of(images_of(data), "ImageNet", Means(), features=0)


def test_the_command_takes_a_dataset_and_its_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bigain.tasks.scoring.extractor_of", lambda protocol, weights: Means())
    out = tmp_path / "out.npz"
    options = ("--data", "shapes.yaml", "--data.images", "21")
    for warning in ("", f"warning: {out} exists and will be replaced\n"):
        assert f"{out}: n = 21, means" in reference([out], *options, split="val").text
        assert warning in capsys.readouterr().err
    found = ReferenceStatistics.load(out, "means")
    assert found.source == "ShapeTextures val, 21 images"
    data = ShapeTextures(images=21, split="val")
    data.setup("predict")
    pixels = [np.asarray(Image.open(io.BytesIO(data.read_bytes(item))), np.float64) for item in data.items]
    np.testing.assert_allclose(found.moments.mean, np.mean([image.mean((0, 1)) for image in pixels], 0), rtol=1e-6)
    for paths, given, message in (
        ([out], (), "give FOLDER OUT.npz, or OUT.npz --data"),
        ([tmp_path, out], options, "give FOLDER OUT.npz, or OUT.npz --data"),
        ([tmp_path, out, out], (), "give FOLDER OUT.npz"),
        ([out], ("--data", "ImageNet1K", "--data.split=val"), "ImageNet1K has no argument 'split'"),
        ([out], ("--data", "OxfordPets", "--data.root", str(tmp_path)), "cannot read .*test.txt"),
    ):
        with pytest.raises(InputError, match=message):
            reference(paths, *given)
