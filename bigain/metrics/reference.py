"""Statistics of real images that generated ones are compared with: their moments, and the files that store them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_only

from bigain.errors import InputError
from bigain.metrics.base import FeatureMetric
from bigain.runs.columns import read_arrays
from bigain.runs.files import replacing
from bigain.runs.numbers import counted
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Better

Array = npt.NDArray[np.float64]
Features = npt.NDArray[Any]

# Rows collected before they are added to the moments: each addition costs d^2, however many rows it adds.
_ROWS = 1024
# The protocol of files that do not name theirs: pytorch-fid writes `mu` and `sigma` only.
_UNNAMED_PROTOCOL = "pytorch-fid"
_TEXTS, _NUMBERS = ("protocol", "sha256", "source"), ("mu", "sigma", "n", "features")
# Precision and recall look for a third neighbour.
MIN_IMAGES = 4

_log = logging.getLogger(__name__)


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
            chunk = cls(len(rows), mean, centred.T @ centred / max(1, len(rows) - 1))
            total = chunk if total is None else total + chunk
        if total is None:
            raise InputError("no images to compute statistics of")
        return total

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan, Golub and LeVeque, 1983)."""
        assert self.n is not None
        assert other.n is not None
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = max(0, self.n - 1) * self.covariance + max(0, other.n - 1) * other.covariance
        scatter += self.n * other.n / n * np.outer(step, step)
        return Moments(n, self.mean + other.n / n * step, scatter / max(1, n - 1))


def _regrouped(chunks: Iterable[Features]) -> Iterator[Array]:
    """Yield the same rows in larger chunks."""
    pending: list[Array] = []
    for chunk in chunks:
        if len(chunk):
            pending.append(np.asarray(chunk, np.float64))
        if sum(map(len, pending)) >= _ROWS:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of a set of real images under one protocol.

    Attributes:
        moments: Of the features; `moments.n` is None if the file does not give it.
        protocol: Name of the extractor's protocol.
        sha256: Of the extractor's weights, in hex; empty if unknown.
        source: Description of the images; of a file that has none, its name.
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
        """Write an `.npz` that pytorch-fid reads, too; an existing file is replaced in one step."""
        arrays: dict[str, Any] = {"mu": self.moments.mean, "sigma": self.moments.covariance}
        arrays |= {"protocol": self.protocol, "sha256": self.sha256, "source": self.source}
        if self.moments.n is not None:
            arrays["n"] = self.moments.n
        if self.features is not None:
            arrays["features"] = np.asarray(self.features, np.float32)
        with replacing(Path(path), "choose another file") as file:
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
        path = Path(path)
        if not path.exists():
            raise InputError(f"reference {path} does not exist; make it with `bigain reference`")
        try:
            arrays = read_arrays(path, (*_TEXTS, *_NUMBERS))
            _check(arrays)
            made_with, weights, source = (" ".join(str(arrays.get(name, "")).split()) for name in _TEXTS)
            made_with, d = made_with or _UNNAMED_PROTOCOL, len(arrays["mu"])
            if made_with != protocol:
                unnamed = "" if "protocol" in arrays else " (it names no protocol, as pytorch-fid's files)"
                mismatch = "distances across protocols mean nothing"
                raise ValueError(f"it was made with protocol {made_with}{unnamed}, not {protocol}; {mismatch}")
            if sha256 and weights and weights != sha256:
                raise ValueError(f"it was made with weights {weights[:8]}..., the extractor has {sha256[:8]}...")
            if dimension not in (None, d):
                raise ValueError(f"it has features of d = {d}, expected d = {dimension}")
        except ValueError as error:
            advice = "make it again with `bigain reference`"
            raise InputError(f"reference {path} cannot be used: {error}; {advice}") from error
        n = int(arrays["n"]) if "n" in arrays else None
        if n is not None and n <= d:
            reason = f"{counted(n, 'image')} for {d} features; distances to it are too high"
            rank_zero_only(_log.warning)(f"warning: reference {path} is of {reason}")
        moments = Moments(n, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
        return cls(moments, protocol, weights, source or path.name, arrays.get("features"))


def _check(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise a ValueError if arrays of a reference are missing, misshapen or impossible."""
    if missing := [name for name in ("mu", "sigma") if name not in arrays]:
        raise ValueError(f"it has no {missing[0]}, expected an .npz with mu and sigma")
    d, square = arrays["mu"].shape, arrays["sigma"].shape
    if len(d) != 1 or not d[0] or square != 2 * d:
        raise ValueError(f"it has mu {d} and sigma {square}, expected (d,) and (d, d)")
    if "features" in arrays and (arrays["features"].shape[1:] != d or len(arrays["features"]) < MIN_IMAGES):
        shape = arrays["features"].shape
        raise ValueError(f"features have shape {shape}, expected (m, {d[0]}) of at least {MIN_IMAGES} images")
    for name in ("mu", "sigma", "features"):
        if name in arrays and not (arrays[name].dtype.kind == "f" and np.isfinite(arrays[name]).all()):
            raise ValueError(f"{name} is {arrays[name].dtype}, expected floats that are finite")
    # Checked up to rounding.
    sigma = arrays["sigma"].astype(np.float64)
    tolerance, symmetric = -1e-6 * np.trace(sigma), np.abs(sigma - sigma.T).max() <= 1e-6 * np.abs(sigma).max()
    if not (tolerance < 0 and symmetric and np.linalg.eigvalsh(sigma)[0] >= tolerance):
        raise ValueError("sigma is not a covariance: expected a symmetric matrix with no negative variance, not 0")


class Distance(FeatureMetric):
    """A metric of all features of a run against a reference, named with the protocol."""

    better: ClassVar[Better | None] = "lower"

    def __init__(self, reference: ReferenceStatistics) -> None:
        """Take the statistics of the real images, under the protocol of the features."""
        self.reference = reference

    def label(self, name: str) -> str:
        """Return the name of an estimate: `frechet[pytorch-fid]`."""
        return f"{name}[{self.reference.protocol}]"

    def incomplete(self, records: Sequence[SampleRecord]) -> str | None:
        if len(records) < MIN_IMAGES:
            return f"{counted(len(records), 'image')}: too few for a distance"
        return super().incomplete(records)
