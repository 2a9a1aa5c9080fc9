"""Statistics of real images that generated ones are compared with: their moments, and the files that store them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.metrics.base import FeatureMetric
from bigain.runs.columns import Header, read_arrays, read_headers
from bigain.runs.files import replacing
from bigain.runs.numbers import counted
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Better

Array = npt.NDArray[np.float64]
Features = npt.NDArray[Any]

# Rows collected before they are added to the moments: each addition costs d^2, however many rows it adds.
_ROWS = 1024
# The protocol of files that do not name theirs: pytorch-fid writes `mu` and `sigma` only.
_UNNAMED = "pytorch-fid"
_TEXTS = ("protocol", "sha256", "source")
_NUMBERS = ("mu", "sigma", "n", "features")
# Of a text, in bytes: 1,000 characters.
_LONGEST = 4000
# Precision and recall look for a third neighbour.
_LEAST_IMAGES = 4
_EXPORT = "make it again with `bigain reference`"


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        n: Size of the set; None if unknown, as in files of pytorch-fid.
        mean: `(d,)`, float64.
        covariance: Unbiased (divided by n - 1). `(d, d)`, float64.
    """

    n: int | None
    mean: Array
    covariance: Array

    @classmethod
    def of(cls, chunks: Iterable[Features]) -> Moments:
        """Compute the moments of features that arrive in chunks; up to rounding they do not depend on the chunks.

        Args:
            chunks: Each `(b, d)`, any float dtype; read once.

        Raises:
            InputError: If there are no features, or some are not finite.
        """
        total: Moments | None = None
        for rows in _regrouped(chunks):
            if not np.isfinite(rows).all():
                raise InputError("features are not finite; the extractor's weights are damaged, or the images")
            mean = rows.mean(axis=0)
            centred = rows - mean
            part = cls(len(rows), mean, centred.T @ centred / max(1, len(rows) - 1))
            total = part if total is None else total + part
        if total is None:
            raise InputError("no images to compute statistics of")
        return total

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan, Golub and LeVeque, 1983)."""
        if self.n is None or other.n is None:
            raise ValueError("sets of unknown size cannot be joined")
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = max(0, self.n - 1) * self.covariance + max(0, other.n - 1) * other.covariance
        scatter += self.n * other.n / n * np.outer(step, step)
        return Moments(n, self.mean + other.n / n * step, scatter / max(1, n - 1))


def _regrouped(chunks: Iterable[Features]) -> Iterator[Array]:
    """Yield the same rows in larger chunks."""
    waiting: list[Array] = []
    for chunk in chunks:
        if len(chunk):
            waiting.append(np.asarray(chunk, np.float64))
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of a set of real images under one protocol.

    Attributes:
        moments: Of the features; `moments.n` is None if the file does not give it.
        protocol: Name of the extractor's protocol.
        sha256: Of the extractor's weights, in hex; empty if unknown.
        source: Description of the images.
        features: Some of the features, for the distances that need more than moments. `(m, d)`, float32.
    """

    moments: Moments
    protocol: str
    sha256: str = ""
    source: str = ""
    features: npt.NDArray[np.float32] | None = None

    def described(self) -> dict[str, Any]:
        """Return what results state of the reference: its source, its number of images and its hash."""
        return {"source": self.source, "n": self.moments.n, "sha256": self.sha256}

    def save(self, path: str | Path) -> None:
        """Write an `.npz` that pytorch-fid reads, too; an existing file is replaced in one step.

        Args:
            path: The file; its folder is created.
        """
        arrays: dict[str, Any] = {"mu": self.moments.mean, "sigma": self.moments.covariance}
        arrays |= {"protocol": self.protocol, "sha256": self.sha256, "source": self.source}
        if self.moments.n is not None:
            arrays["n"] = self.moments.n
        if self.features is not None:
            arrays["features"] = np.asarray(self.features, np.float32)
        with replacing(Path(path)) as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(
        cls, path: str | Path, protocol: str, dimension: int | None = None, sha256: str = ""
    ) -> ReferenceStatistics:
        """Read a file written by `save` or by pytorch-fid.

        Args:
            path: The `.npz`.
            protocol: The one that generated images are measured with.
            dimension: Length of its features; None accepts any.
            sha256: Of the extractor's weights; empty accepts any. A file without a hash is accepted.

        Raises:
            InputError: If the file is missing or damaged, or was made another way.
        """
        if not Path(path).is_file():
            raise InputError(f"reference {path} does not exist; make it with `bigain reference`")
        try:
            return cls._read(Path(path), protocol, dimension, sha256)
        except ValueError as error:
            raise InputError(f"reference {path} cannot be used: {error}; {_EXPORT}") from error

    @classmethod
    def _read(cls, path: Path, protocol: str, dimension: int | None, sha256: str) -> ReferenceStatistics:
        """Read a file for `load`; raise a ValueError with what is wrong with it."""
        headers = read_headers(path, (*_TEXTS, *_NUMBERS))
        if missing := [name for name in ("mu", "sigma") if name not in headers]:
            raise ValueError(f"it has no {missing[0]}, expected an .npz with mu and sigma")
        texts, numbers = ([name for name in names if name in headers] for names in (_TEXTS, _NUMBERS))
        if odd := [name for name in texts if headers[name].shape or headers[name].dtype.itemsize > _LONGEST]:
            raise ValueError(f"{odd[0]} is {headers[odd[0]]}, expected a short text")
        read = read_arrays(path, texts) if texts else {}
        made_with, weights, source = (" ".join(str(read.get(name, "")).split()) for name in _TEXTS)
        made_with = made_with or _UNNAMED
        if made_with != protocol:
            unnamed = "" if "protocol" in read else " (it names no protocol, as pytorch-fid's files)"
            raise ValueError(
                f"it was made with protocol {made_with}{unnamed}, not {protocol}; distances across protocols mean "
                "nothing"
            )
        if sha256 and weights and weights != sha256:
            raise ValueError(f"it was made with weights {weights[:8]}..., the extractor has {sha256[:8]}...")
        _check_headers(headers, dimension)
        arrays = read_arrays(path, numbers)
        if infinite := [name for name in numbers if not np.isfinite(arrays[name]).all()]:
            raise ValueError(f"{infinite[0]} has numbers that are not finite")
        mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        # Up to rounding.
        least = -1e-6 * np.trace(covariance)
        symmetric = np.abs(covariance - covariance.T).max() <= 1e-6 * np.abs(covariance).max()
        if not (least < 0 and symmetric and np.linalg.eigvalsh(covariance)[0] >= least):
            raise ValueError("sigma is not a covariance: expected a symmetric matrix with no negative variance, not 0")
        n = None if "n" not in arrays else int(arrays["n"])
        if n is not None and n < 2:
            raise ValueError(f"n is {n}, expected at least 2 images")
        return cls(Moments(n, mean, covariance), protocol, weights, source, arrays.get("features"))


def _check_headers(headers: Mapping[str, Header], dimension: int | None) -> None:
    """Raise a ValueError if an array of a reference has a wrong shape or type."""
    d, square = headers["mu"].shape, headers["sigma"].shape
    if len(d) != 1 or not d[0] or square != 2 * d or dimension not in (None, *d):
        expected = "" if dimension is None else f" with d = {dimension}"
        raise ValueError(f"it has mu {d} and sigma {square}, expected (d,) and (d, d){expected}")
    if "features" in headers and ((m := headers["features"].shape)[1:] != d or m[0] < _LEAST_IMAGES):
        raise ValueError(f"features have shape {m}, expected (m, {d[0]}) of at least {_LEAST_IMAGES} images")
    if "n" in headers and headers["n"].shape:
        raise ValueError(f"n has shape {headers['n'].shape}, expected the number of images")
    for name, kinds in (("mu", "f"), ("sigma", "f"), ("features", "f"), ("n", "iu")):
        if name in headers and headers[name].dtype.kind not in kinds:
            raise ValueError(
                f"{name} is {headers[name].dtype}, expected {'a whole number' if name == 'n' else 'floats'}"
            )


class Distance(FeatureMetric):
    """A metric of all features of a run against a reference, named with the protocol."""

    better: ClassVar[Better | None] = "lower"

    def __init__(self, reference: ReferenceStatistics) -> None:
        """Set the metric up.

        Args:
            reference: Of the real images, under the protocol of the features.
        """
        self.reference = reference

    def label(self, name: str) -> str:
        """Return the name of an estimate: `frechet[pytorch-fid]`."""
        return f"{name}[{self.reference.protocol}]"

    def incomplete(self, records: Sequence[SampleRecord]) -> str | None:
        if len(records) < _LEAST_IMAGES:
            return f"{counted(len(records), 'image')}: too few for a distance"
        return super().incomplete(records)
