"""The frequency response that a run stored: what its compressors kept of the tokens, by spatial frequency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.runs.files import read_json
from bigain.runs.schema import RESPONSE_FILE, RESPONSE_VERSION, ResponseFile, ResponseSite

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """Content of `frequency_response.json`: `docs/explain.md` explains every key."""

    schema_version: int
    bands: Sequence[float]
    batches: int
    images: int
    sites: Sequence[ResponseSite]
    not_measured: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Site and module of each compressed module."""
        return [f"{site['name']}, {site['module']}" for site in self.sites]

    def shares(self) -> Floats:
        """Return the energy kept in each radial band, and that of the error, as shares of the energy before.

        The share of the error is 0 where tokens are untouched, and 1 where the error is as large as the signal; NaN
        where the energy before is 0. The mean of the tokens is no band.

        Returns:
            `(2, modules, bands)`.
        """
        shares = [[site["kept"][1:] for site in self.sites], [site["destroyed"][1:] for site in self.sites]]
        return np.array(shares, np.float64).reshape(2, len(self.sites), len(self.bands) - 1)

    def gain(self, grid: Sequence[int], bands: int) -> Floats | None:
        """Return the energy kept in each band of a latent with this grid, the mean first, averaged over modules.

        Tokens of patches or strides see the latent's highest frequencies folded back. `(1 + bands,)`; None if no module
        was measured.
        """
        centres, latent_centres = (np.arange(count) / count + 0.5 / count for count in (len(self.bands) - 1, bands))
        gains = []
        for site in self.sites:
            mean, *kept = np.array(site["kept"], np.float64)
            folded = np.abs((latent_centres * grid[0] / site["grid"][0] + 1) % 2 - 1)
            gains.append([mean, *np.interp(folded, centres, kept)])
        return np.mean(gains, 0) if gains else None

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""

        def as_row(shares: Floats) -> dict[str, Any]:
            plain = [[None if np.isnan(share) else float(share) for share in of_kind] for of_kind in shares]
            return dict(zip(("kept", "destroyed"), plain, strict=True))

        shares = self.shares()
        return {
            **{name: getattr(self, name) for name in ("bands", "batches", "images")},
            "sites": [{"name": name, **as_row(shares[:, index])} for index, name in enumerate(self.names)],
            **as_row(mean_over_modules(shares)),
            "not_measured": self.not_measured,
        }


def mean_over_modules(shares: Floats) -> Floats:
    """Return the mean over modules of each share, over those that have one. `(2, modules, ...)` -> `(2, ...)`."""
    return np.ma.masked_invalid(shares).mean(1).filled(np.nan)


def load_response(run: Path) -> Response | None:
    """Load the frequency response of a run; None if it has none.

    Raises:
        InputError: If the file is damaged or of another version.
    """
    file = run / RESPONSE_FILE
    if not file.is_file():
        return None
    again = f"delete it, or run the command that made {run} again into another --output"
    response = Response(**read_json(file, ResponseFile, again))
    if response.schema_version != RESPONSE_VERSION:
        raise InputError(
            f"{file} has schema_version {response.schema_version}; this bigain reads {RESPONSE_VERSION}; {again}"
        )
    return response
