"""Where the processes of a run wait for each other, however far apart they end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from lightning.pytorch import Trainer

from bigain.errors import InputError

_PATIENCE = timedelta(days=365)

T = TypeVar("T")


class Meeting:
    """A group of all processes of a run. One may be done hours before another; the trainer's own waits half an hour."""

    def __init__(self, trainer: Trainer) -> None:
        """Make the group, while all processes are here and do the same."""
        self._processes = trainer.world_size
        self._group: Any = None
        if self._processes > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def gathered(self, mine: T) -> list[T]:
        """What every process brings, in the order of ranks; called by all of them.

        Raises:
            InputError: If one of them is gone.
        """
        if self._group is None:
            return [mine]
        found: list[Any] = [None] * self._processes
        try:
            torch.distributed.all_gather_object(found, mine, self._group)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"another process of this run is gone; what is finished is kept, run the command again ({reason})"
            ) from error
        return found
