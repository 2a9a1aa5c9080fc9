"""Which spatial frequencies a compressor keeps of the tokens at its sites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bigain.compressors.base import Compressor, Observation, Onlooker
from bigain.errors import InputError
from bigain.runs.files import read_json, write_json
from bigain.runs.schema import RESPONSE_FILE, RESPONSE_VERSION, ResponseFile
from bigain.tasks.gather import ProcessGather
from bigain.tokens.frequency import band_energy, radial_bands
from bigain.tokens.grid import Grid
from bigain.tokens.precision import widest_float

KINDS = ("original", "compressed", "error")
# Of diffusion time; what a network is asked may lie a little off, never above.
_TIME = 1000
# Elements of a token map held in float64 at a time.
_BLOCK = 2**23

_log = logging.getLogger(__name__)


class FrequencyResponse(Callback, Onlooker):
    """Measures the energy per band of spatial frequencies before and after compression, in the first batches.

    At each compressed module: the token map that goes in, and what is left of it, restored to full length (merged and
    unmerged; keys by the nearest one). Their energies and that of their difference are taken from the orthonormal 2-D
    DCT, by radial band and by band of timesteps, as means over channels and over the rows of all forwards. They are
    written to `frequency_response.json` in the trainer's root directory when the run ends. No number of the run
    changes; after its batches the callback costs nothing.
    """

    def __init__(self, batches: int = 2, bands: int = 8, timestep_bands: int = 5) -> None:
        """Set the measurement up.

        Args:
            batches: Batches to measure in each process, the first ones in which anything is computed.
            bands: Bands of radial frequency of equal width.
            timestep_bands: Bands of the timesteps 0..999 of equal width.

        Raises:
            InputError: If one of them is not positive.
        """
        for name, value in (("batches", batches), ("bands", bands), ("timestep_bands", timestep_bands)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        self.batches = batches
        self.bands = bands
        self.timestep_bands = timestep_bands
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._images = 0
        self._observed = False
        self._watched: list[Compressor] = []
        self._sites: dict[tuple[int, str], _Sums] = {}
        self._unknown: set[str] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()
        self._gather = ProcessGather(trainer)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._seen >= self.batches:
            return
        self._observed = False
        self._watched = [callback for callback in _callbacks(trainer) if isinstance(callback, Compressor)]
        for compressor in self._watched:
            compressor.onlookers.append(self)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._leave()
        # A batch of a resumed run that was done before counts for nothing.
        if self._observed:
            self._observed = False
            self._seen += 1
            self._images += len(batch["image_id"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        for compressor in self._watched:
            compressor.onlookers.remove(self)
        self._watched = []

    def compressed(self, seen: Observation) -> None:
        self._observed = True
        grid = seen.site.grid(seen.context.latent)
        restored = seen.restored()
        if restored is None:
            self._unknown.add(f"{seen.site.name}, {seen.module}")
            return
        key = (seen.site.index, seen.module)
        if key not in self._sites:
            self._sites[key] = _Sums(seen, grid, self.bands, self.timestep_bands)
        with torch.no_grad():
            self._sites[key].add(seen, restored, grid)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = {
            "images": self._images,
            "batches": self._seen,
            "sites": [sums.values() for sums in self._sites.values()],
            "not_measured": sorted(self._unknown),
        }
        # Objects, not tensors: a process that went on with a finished part has no sites.
        everyone = self._gather.gathered(mine)
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir) / RESPONSE_FILE, everyone, trainer)

    def _write(self, path: Path, everyone: Sequence[dict[str, Any]], trainer: Trainer) -> None:
        if not any(one["batches"] for one in everyone):
            # Every image was done before: what was measured then stays.
            if any(isinstance(callback, Compressor) for callback in _callbacks(trainer)) and not path.is_file():
                _log.warning(f"warning: nothing was computed, so there is no {path}; run into another --output")
            return
        images = sum(one["images"] for one in everyone)
        if path.is_file() and _images_in(path) >= images:
            # A run that goes on had measured as many images before.
            return
        content = {
            "schema_version": RESPONSE_VERSION,
            "bands": [k / self.bands for k in range(self.bands + 1)],
            "timesteps": [_TIME * k / self.timestep_bands for k in range(self.timestep_bands + 1)],
            "batches": sum(one["batches"] for one in everyone),
            "images": images,
            "sites": _total([site for one in everyone for site in one["sites"]]),
            "not_measured": sorted({name for one in everyone for name in one["not_measured"]}),
        }
        write_json(path, content)


def _images_in(path: Path) -> int:
    """Images behind a response that is there; 0 if it cannot be read."""
    try:
        return int(read_json(path, ResponseFile)["images"])
    except InputError:
        return 0


class _Sums:
    """Energies of one compressed module, summed over rows on their device."""

    def __init__(self, seen: Observation, grid: Grid, bands: int, timestep_bands: int) -> None:
        self._about = {"name": seen.site.name, "index": seen.site.index, "module": seen.module}
        self._about |= {"grid": list(grid), "channels": seen.before.shape[2]}
        self._about |= {"modes": radial_bands(grid, bands).flatten().bincount(minlength=bands + 1).tolist()}
        self._bands, self._times = bands, timestep_bands
        self._energy: Tensor | None = None
        self._rows: Tensor | None = None
        self._left_out: Tensor | None = None

    def add(self, seen: Observation, restored: Tensor, grid: Grid) -> None:
        """Add the rows of one forward."""
        rows = max(1, _BLOCK // seen.before[0].numel())
        pairs = zip(seen.before.split(rows), restored.split(rows), strict=True)
        energy = torch.cat([self._energies(before, restored, grid) for before, restored in pairs])
        finite = energy.isfinite().flatten(1).all(1)
        energy = energy.masked_fill(~finite[:, None, None], 0)
        # Edges, not a product, which rounds some timesteps to the band below.
        edges = torch.arange(1, self._times, device=energy.device) * _TIME / self._times
        time = torch.bucketize(seen.context.timesteps.to(edges).contiguous(), edges, right=True)
        # (rows, timestep bands), in the precision of the sums; a product, which adds in the same order each time.
        member = torch.nn.functional.one_hot(time, self._times).to(energy.dtype) * finite[:, None]
        sums = torch.einsum("rt,rkb->tkb", member, energy)
        counts, left_out = member.sum(0), (~finite).sum()
        self._energy = sums if self._energy is None else self._energy + sums
        self._rows = counts if self._rows is None else self._rows + counts
        self._left_out = left_out if self._left_out is None else self._left_out + left_out

    def _energies(self, before: Tensor, restored: Tensor, grid: Grid) -> Tensor:
        """Of the map, of what is left of it, and of their difference. `(r, 3, 1 + bands)`."""
        wide = widest_float(before.device)
        before, restored = before.to(wide), restored.to(wide)
        return torch.stack([band_energy(x, grid, self._bands) for x in (before, restored, before - restored)], 1)

    def values(self) -> dict[str, Any]:
        """Everything as plain values; leaves the device."""
        assert self._energy is not None
        assert self._rows is not None
        assert self._left_out is not None
        rows = [int(count) for count in self._rows.tolist()]
        energy = {name: self._energy[:, kind].tolist() for kind, name in enumerate(KINDS)}
        return {**self._about, "rows": rows, "rows_left_out": int(self._left_out), **energy}


def _total(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over processes as means over rows, in the order of the sites."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for part in parts:
        key = (part["index"], part["module"])
        found[key] = _added(found[key], part) if key in found else part
    return [_means(found[key]) for key in sorted(found)]


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    summed = {
        name: (torch.tensor(a[name], dtype=torch.float64) + torch.tensor(b[name], dtype=torch.float64)).tolist()
        for name in KINDS
    }
    rows = [x + y for x, y in zip(a["rows"], b["rows"], strict=True)]
    return {**a, **summed, "rows": rows, "rows_left_out": a["rows_left_out"] + b["rows_left_out"]}


def _means(site: dict[str, Any]) -> dict[str, Any]:
    """Energies per row, and per site over all timesteps what is kept and what is destroyed."""
    rows = torch.tensor(site["rows"], dtype=torch.float64)
    sums = {name: torch.tensor(site[name], dtype=torch.float64) for name in KINDS}
    means = {name: (total / rows.clamp(min=1)[:, None]).tolist() for name, total in sums.items()}
    whole = {name: total.sum(0).tolist() for name, total in sums.items()}
    ratios = {
        "kept": [_ratio(a, b) for a, b in zip(whole["compressed"], whole["original"], strict=True)],
        "destroyed": [_ratio(a, b) for a, b in zip(whole["error"], whole["original"], strict=True)],
    }
    return {**site, **means, **ratios}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]
