"""The frequency response that a run stored: what its compressors kept of the tokens, by spatial frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigain.errors import InputError
from bigain.runs.files import read_json
from bigain.runs.schema import RESPONSE_FILE, RESPONSE_VERSION, ResponseFile, ResponseSite

_QUARTER = 0.25


@dataclass(frozen=True)
class Shares:
    """Shares of energy, by band of spatial frequencies or of timesteps.

    Attributes:
        name: Site and module.
        kept: Energy after compression over energy before; None where there was none.
        destroyed: Energy of the difference over energy before: 0 is untouched, 1 as much error as there was signal.
    """

    name: str
    kept: Sequence[float | None]
    destroyed: Sequence[float | None]


@dataclass(frozen=True)
class Response:
    """Content of `frequency_response.json`: `docs/explain.md` explains every key."""

    schema_version: int
    bands: Sequence[float]
    timesteps: Sequence[float]
    batches: int
    images: int
    sites: Sequence[ResponseSite]
    not_measured: Sequence[str]

    @property
    def by_band(self) -> list[Shares]:
        """Shares of every module by radial band, without the mean of the tokens."""
        return [Shares(_name(site), site["kept"][1:], site["destroyed"][1:]) for site in self.sites]

    @property
    def left_out(self) -> tuple[int, int]:
        """Rows with values that are not finite in the module that has most of them, and all rows of that module."""
        counts = [(int(site["rows_left_out"]), int(site["rows_left_out"] + sum(site["rows"]))) for site in self.sites]
        return max(counts, default=(0, 0))

    @property
    def lowest(self) -> range:
        """Radial bands of the lowest quarter; at least the first."""
        return range(max(1, sum(edge <= _QUARTER for edge in self.bands[1:])))

    @property
    def highest(self) -> range:
        """Radial bands of the highest quarter; at least the last."""
        count = len(self.bands) - 1
        return range(count - max(1, sum(edge >= 1 - _QUARTER for edge in self.bands[:-1])), count)

    def over(self, bands: range, by_time: bool = False) -> list[Shares]:
        """Return shares of every module over some radial bands together: a single one, or one per band of timesteps."""
        times = range(len(self.timesteps) - 1)
        parts = [range(time, time + 1) for time in times] if by_time else [times]
        return [_shares(site, bands, parts) for site in self.sites]

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        sites, mean = self.by_band, mean_shares(self.by_band)
        return {
            **{name: getattr(self, name) for name in ("bands", "timesteps", "batches", "images")},
            "sites": [vars(site) for site in sites],
            "kept": mean.kept,
            "destroyed": mean.destroyed,
            "highest_destroyed_by_timestep": mean_shares(self.over(self.highest, by_time=True)).destroyed,
            "not_measured": self.not_measured,
        }


def mean_shares(sites: Sequence[Shares]) -> Shares:
    """Return the mean over modules of each share, over those that have one."""

    def mean(shares: Sequence[Sequence[float | None]]) -> list[float | None]:
        columns = [[share for share in column if share is not None] for column in zip(*shares, strict=True)]
        return [math.fsum(column) / len(column) if column else None for column in columns]

    return Shares("mean of these", mean([site.kept for site in sites]), mean([site.destroyed for site in sites]))


def _shares(site: ResponseSite, bands: range, times: Sequence[range]) -> Shares:
    def energy(means: Sequence[Sequence[float]], over: range) -> float:
        # Stored energies are means over rows; the first one is that of the mean of the tokens.
        return sum(site["rows"][time] * means[time][1 + band] for time in over for band in bands)

    before = [energy(site["original"], over) for over in times]
    kept, destroyed = (
        [energy(means, over) / whole if whole else None for over, whole in zip(times, before, strict=True)]
        for means in (site["compressed"], site["error"])
    )
    return Shares(_name(site), kept, destroyed)


def _name(site: ResponseSite) -> str:
    return f"{site['name']}, {site['module']}"


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
