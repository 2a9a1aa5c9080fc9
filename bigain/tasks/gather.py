"""Gathering over the processes of a run, which may end hours apart."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from lightning.pytorch import Trainer

from bigain.errors import InputError

_PATIENCE = timedelta(days=365)

T = TypeVar("T")


class ProcessGather:
    """Gathers objects over all processes of a run. Unlike the trainer's own group, it waits more than half an hour."""

    def __init__(self, trainer: Trainer) -> None:
        """Create the process group; all processes call this together."""
        self._processes = trainer.world_size
        self._group: Any = None
        if self._processes > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def gathered(self, value: T) -> list[T]:
        """Return the value of every process in the order of ranks; all processes call this.

        Raises:
            InputError: If a process ended early.
        """
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._processes
        try:
            torch.distributed.all_gather_object(values, value, self._group)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"a process of this run ended early; what is finished is kept, run the command again ({reason})"
            ) from error
        return values
