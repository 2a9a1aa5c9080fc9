"""The share of each spatial frequency that a compressor keeps of the tokens at its sites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from bigain.compressors.onlookers import Observation
from bigain.errors import InputError
from bigain.inspector.watcher import Watcher, watchable
from bigain.runs.files import read_json, write_json
from bigain.runs.schema import RESPONSE_FILE, RESPONSE_VERSION, ResponseFile
from bigain.tasks.results_writer import ProcessGather
from bigain.tokens.frequency import band_energy, radial_bands
from bigain.tokens.grid import Grid
from bigain.tokens.precision import widest_float

KINDS = ("original", "compressed", "error")
# Elements of a token map converted to float64 at a time.
_BLOCK = 2**23

_log = logging.getLogger(__name__)


class FrequencyResponse(Watcher):
    """Measures the energy per band of spatial frequencies before and after compression, in the first batches.

    The input of each compressed module is compared with the compressed tokens restored to full length: merged and
    unmerged, or for keys the nearest key of each place. The energies of both and of their difference are computed with
    the orthonormal 2-D DCT, by radial band, as means over channels and over the rows of all forwards. They are written
    to `frequency_response.json` in the trainer's root directory at the end of the run. No number of the run changes;
    after its batches the callback costs nothing.
    """

    def __init__(self, batches: int = 2, bands: int = 8) -> None:
        """Set the measurement up.

        Args:
            batches: Batches to measure in each process: the first ones that are not already done.
            bands: Number of radial frequency bands of equal width.

        Raises:
            InputError: If one of them is not positive.
        """
        for name, value in {"batches": batches, "bands": bands}.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        super().__init__()
        self.batches = batches
        self.bands = bands

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches_done = self._images = 0
        self._sites: dict[_Module, _Sums] = {}
        self._not_measured: set[str] = set()
        self._gather = ProcessGather(trainer)

    def begin_batch(self, module: LightningModule, image_ids: Sequence[str]) -> bool:
        self._observed = False
        return self._batches_done < self.batches

    def end_batch(self, trainer: Trainer, module: LightningModule, image_ids: Sequence[str], outputs: Any) -> None:
        # A resumed run computes nothing in the batches that are already done.
        if self._observed:
            self._batches_done += 1
            self._images += len(image_ids)

    @torch.no_grad()
    def compressed(self, observation: Observation) -> None:
        self._observed = True
        site, before = observation.site, observation.before
        if (restored := observation.restored()) is None:
            self._not_measured.add(f"{site.name}, {observation.module}")
            return
        grid = site.grid(observation.context.latent)
        module = (site.index, observation.module, site.name, grid, before.shape[2])
        sums = _energies(before, restored, grid, self.bands)
        self._sites[module] = _total([self._sites[module], sums]) if module in self._sites else sums

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Objects, not tensors: a process without images left has no sites.
        sites = {module: (energies.cpu().double(), rows) for module, (energies, rows) in self._sites.items()}
        gathered = self._gather.gathered((self._batches_done, self._images, sites, self._not_measured))
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / RESPONSE_FILE
        batches, images = sum(process[0] for process in gathered), sum(process[1] for process in gathered)
        if not batches:
            # All images were already done; an earlier measurement is kept.
            if watchable(trainer) and not path.is_file():
                _log.warning(f"warning: nothing was computed, so there is no {path}; run into a different --output")
            return
        if path.is_file() and read_json(path, ResponseFile)["images"] >= images:
            # The run was resumed and had measured as many images before.
            return
        measured = [process[2] for process in gathered]
        modules = sorted(set().union(*measured))
        total = {module: _total([sums[module] for sums in measured if module in sums]) for module in modules}
        content = {
            "schema_version": RESPONSE_VERSION,
            "bands": [k / self.bands for k in range(self.bands + 1)],
            "batches": batches,
            "images": images,
            "sites": [_description(module, sums, self.bands) for module, sums in total.items()],
            "not_measured": sorted(set().union(*(process[3] for process in gathered))),
        }
        write_json(path, content)


# A compressed module: index of its site, its name, the site's name, the token map and the channels.
_Module = tuple[int, str, str, Grid, int]
# Sums over rows: energies by kind and radial band `(3, 1 + bands)`, and the number of rows.
_Sums = tuple[Tensor, int]


def _total(sums: Sequence[_Sums]) -> _Sums:
    energies, rows = zip(*sums, strict=True)
    return torch.stack(energies).sum(0), sum(rows)


def _description(module: _Module, sums: _Sums, bands: int) -> dict[str, Any]:
    """Return energies per row, and the shares kept and destroyed, as plain values."""
    (index, part, name, grid, channels), (energies, rows) = module, sums
    modes = radial_bands(grid, bands).flatten().bincount(minlength=bands + 1)
    original, compressed, error = energies.tolist()
    return {
        **{"name": name, "index": index, "module": part, "grid": list(grid), "channels": channels},
        "modes": modes.tolist(),
        "rows": rows,
        **dict(zip(KINDS, (energies / rows).tolist(), strict=True)),
        "kept": [x / total if total else None for x, total in zip(compressed, original, strict=True)],
        "destroyed": [x / total if total else None for x, total in zip(error, original, strict=True)],
    }


def _energies(before: Tensor, restored: Tensor, grid: Grid, bands: int) -> _Sums:
    """Sum the energies of one forward over its rows, without those of images that fail. Tokens: `(r, n, c)`."""
    dtype = widest_float(before.device)
    rows, sums = max(1, _BLOCK // before[0].numel()), []
    for x, y in zip(before.split(rows), restored.split(rows), strict=True):
        x, y = x.to(dtype), y.to(dtype)
        energies = torch.stack([band_energy(values, grid, bands) for values in (x, y, x - y)])
        finite = energies.isfinite().all(2).all(0)
        sums.append((energies[:, finite].sum(1), int(finite.sum())))
    return _total(sums)
