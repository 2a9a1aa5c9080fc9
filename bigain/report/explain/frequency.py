"""The frequency response that a run stored: what its compressors kept of the tokens, by spatial frequency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigain.errors import InputError
from bigain.runs.files import read_json
from bigain.runs.schema import RESPONSE_FILE, RESPONSE_VERSION, ResponseFile

_QUARTER = 0.25

Shares = tuple[float | None, ...]


@dataclass(frozen=True)
class Kept:
    """Shares of a module's energy, by band of spatial frequencies or by band of timesteps.

    Attributes:
        name: Site and module.
        kept: Energy after compression over energy before; None where there was none.
        destroyed: Energy of the difference over energy before: 0 is untouched, 1 as much error as there was signal.
    """

    name: str
    kept: Shares
    destroyed: Shares


@dataclass(frozen=True)
class Response:
    """What `FrequencyResponse` measured.

    Attributes:
        bands: Edges of the radial bands, from 0 to 1.
        timesteps: Edges of the bands of timesteps.
        batches: Batches that were measured.
        images: Images in them.
        sites: As stored.
        not_measured: Modules whose compressor cannot tell what is left of a token.
    """

    bands: tuple[float, ...]
    timesteps: tuple[float, ...]
    batches: int
    images: int
    sites: Sequence[Mapping[str, Any]]
    not_measured: Sequence[str]

    @property
    def by_band(self) -> list[Kept]:
        """Of every module by radial band, the mean left out."""
        return [Kept(_name(site), tuple(site["kept"][1:]), tuple(site["destroyed"][1:])) for site in self.sites]

    @property
    def left_out(self) -> tuple[int, int]:
        """Rows whose values were not finite, in which module most were, and all of that module's rows."""
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

    def together(self, bands: range) -> list[Kept]:
        """Of every module over some radial bands together: a single share."""
        return [self._shares(site, bands, [range(len(self.timesteps) - 1)]) for site in self.sites]

    def by_time(self, bands: range) -> list[Kept]:
        """Of every module over some radial bands together, by band of timesteps."""
        return [
            self._shares(site, bands, [range(i, i + 1) for i in range(len(self.timesteps) - 1)]) for site in self.sites
        ]

    def _shares(self, site: Mapping[str, Any], bands: range, times: Sequence[range]) -> Kept:
        def energy(kind: str, over: range) -> float:
            # Stored energies are means over rows.
            return sum(site["rows"][t] * site[kind][t][1 + band] for t in over for band in bands)

        whole = [energy("original", over) for over in times]
        kept, destroyed = (
            tuple(energy(kind, over) / all_of if all_of else None for over, all_of in zip(times, whole, strict=True))
            for kind in ("compressed", "error")
        )
        return Kept(_name(site), kept, destroyed)


def mean_share(parts: Sequence[Shares]) -> Shares:
    """Mean over modules of each share, over those that have one."""
    columns = [[share for share in column if share is not None] for column in zip(*parts, strict=True)]
    return tuple(math.fsum(column) / len(column) if column else None for column in columns)


def load_response(run: Path) -> Response | None:
    """Read the frequency response of a run; None if it has none.

    Raises:
        InputError: If the file is damaged or of another version.
    """
    file = run / RESPONSE_FILE
    if not file.is_file():
        return None
    again = f"delete it, or run the command that made {run} again into another --output"
    try:
        found = read_json(file, ResponseFile, again)
        if found["schema_version"] != RESPONSE_VERSION:
            raise InputError(
                f"{file} has schema_version {found['schema_version']}; this bigain reads {RESPONSE_VERSION}; {again}"
            )
        response = Response(
            tuple(map(float, found["bands"])),
            tuple(map(float, found["timesteps"])),
            int(found["batches"]),
            int(found["images"]),
            list(found["sites"]),
            list(found["not_measured"]),
        )
        _check(response)
    except (ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is damaged ({error!r}); {again}") from error
    return response


def _check(response: Response) -> None:
    """Raise a ValueError, KeyError or TypeError unless everything is there, in shape and finite."""
    bands, times = len(response.bands), len(response.timesteps) - 1
    if bands < 2 or times < 1:
        raise ValueError(f"{bands - 1} bands of frequencies and {times} of timesteps")
    for site in response.sites:
        _name(site)
        sizes = [len(site["rows"]), *(len(site[kind]) for kind in ("original", "compressed", "error"))]
        widths = [len(row) for kind in ("original", "compressed", "error") for row in site[kind]]
        widths += [len(site["kept"]), len(site["destroyed"])]
        if set(sizes) != {times} or set(widths) != {bands}:
            raise ValueError(f"site {site['name']} has {sizes} rows of {sorted(set(widths))} bands")
        numbers = [value for kind in ("original", "compressed", "error") for row in site[kind] for value in row]
        numbers += [*site["rows"], site["rows_left_out"]] + [
            value for value in site["kept"] + site["destroyed"] if value is not None
        ]
        if not all(math.isfinite(value) for value in numbers):
            raise ValueError(f"site {site['name']} has a value that is not finite")


def _name(site: Mapping[str, Any]) -> str:
    return f"{site['name']}, {site['module']}"
