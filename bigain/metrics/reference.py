"""Statistics of real images that generated ones are compared with, and the files they are kept in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.metrics.distances import Moments
from bigain.runs.columns import read_arrays
from bigain.runs.files import replacing

# The protocol of files that do not name theirs: pytorch-fid writes `mu` and `sigma` only.
_UNNAMED = "pytorch-fid"


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What is known of a set of real images under one protocol.

    Attributes:
        moments: Of the features; `moments.n` is None if the file does not tell.
        protocol: Name of the extractor's protocol.
        sha256: Of the extractor's weights, in hex; empty if unknown.
        source: What the images are, in words.
        features: Some of the features, for the distances that need more than moments. `(m, d)`, float32.
    """

    moments: Moments
    protocol: str
    sha256: str = ""
    source: str = ""
    features: npt.NDArray[np.float32] | None = None

    def described(self) -> dict[str, Any]:
        """What results tell of it: where it is from, how many images it is of, and its hash."""
        return {"source": self.source, "n": self.moments.n, "sha256": self.sha256}

    def save(self, path: str | Path) -> None:
        """Write an `.npz` that pytorch-fid reads, too; a file of that name is replaced in one step.

        Args:
            path: The file; its folder is made.
        """
        path = Path(path)
        arrays: dict[str, Any] = {"mu": self.moments.mean, "sigma": self.moments.covariance}
        arrays |= {"protocol": self.protocol, "sha256": self.sha256, "source": self.source}
        if self.moments.n is not None:
            arrays["n"] = self.moments.n
        if self.features is not None:
            arrays["features"] = np.asarray(self.features, np.float32)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(
        cls, path: str | Path, protocol: str, dimension: int | None = None, sha256: str = ""
    ) -> ReferenceStatistics:
        """Read a file written by `save` or by pytorch-fid.

        Args:
            path: The `.npz`.
            protocol: The one that generated images are measured with.
            dimension: Length of its features; None takes any.
            sha256: Of the extractor's weights; empty takes any, as does a file that does not tell.

        Raises:
            InputError: If the file is missing or damaged, or was made another way.
        """
        arrays = _read(Path(path))
        made_with = _text(arrays, "protocol") or _UNNAMED
        if made_with != protocol:
            unnamed = "" if "protocol" in arrays else " (it names no protocol, as pytorch-fid's files)"
            raise InputError(
                f"reference {path} was made with protocol {made_with}{unnamed}, not {protocol}; distances between the "
                "two mean nothing; export it again with scripts/export_reference_stats.py"
            )
        weights = _text(arrays, "sha256")
        if sha256 and weights and weights != sha256:
            raise InputError(
                f"reference {path} was made with weights {weights[:8]}..., the extractor has {sha256[:8]}...; export "
                "it again with scripts/export_reference_stats.py"
            )
        moments = _moments(arrays, path, dimension)
        features = arrays.get("features")
        if features is not None and (features.ndim != 2 or features.shape[1] != len(moments.mean) or len(features) < 2):
            raise InputError(f"reference {path}: features have shape {features.shape}; export the file again")
        if features is not None and not (features.dtype.kind == "f" and np.isfinite(features).all()):
            raise InputError(f"reference {path}: features are not finite numbers; export the file again")
        return cls(moments, protocol, weights, _text(arrays, "source"), features)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise InputError(f"reference {path} does not exist; make it with scripts/export_reference_stats.py")
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise InputError(f"reference {path} cannot be read ({error}); export it again") from error
    lacking = [name for name in ("mu", "sigma") if name not in arrays]
    if lacking:
        raise InputError(f"reference {path} has no {lacking[0]}; expected an .npz with mu and sigma")
    return arrays


def _text(arrays: dict[str, npt.NDArray[Any]], name: str) -> str:
    return str(arrays[name]) if name in arrays else ""


def _moments(arrays: dict[str, npt.NDArray[Any]], path: str | Path, dimension: int | None) -> Moments:
    mean, covariance = arrays["mu"], arrays["sigma"]
    shapes = f"mu {mean.shape} and sigma {covariance.shape}"
    wanted = "" if dimension is None else f" with d = {dimension}"
    if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape or dimension not in (None, len(mean)):
        raise InputError(f"reference {path} has {shapes}; expected (d,) and (d, d){wanted}")
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise InputError(f"reference {path} has {mean.dtype} and {covariance.dtype}; expected floating point")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    scale = float(np.abs(covariance).max(initial=0.0))
    # Not `>`: with NaN or infinity, comparisons are false.
    if not (np.isfinite(mean).all() and np.isfinite(scale) and np.abs(covariance - covariance.T).max() <= 1e-6 * scale):
        raise InputError(f"reference {path}: sigma is not a covariance, or numbers are not finite; export it again")
    n = arrays.get("n")
    if n is not None and (n.ndim or n.dtype.kind not in "iu" or n < 1):
        raise InputError(f"reference {path}: n is {n}, expected the number of images")
    return Moments(None if n is None else int(n), mean, covariance)
