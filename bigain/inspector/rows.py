"""Which rows of a run's forwards belong to an image, by their keys alone: batches and processes do not enter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule

from bigain.backbones.forward import ForwardContext, RowKeys
from bigain.data.selection import Item
from bigain.diffusion.sampling import item_keys, step_keys
from bigain.diffusion.trials import trial_keys
from bigain.errors import InputError
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.sampler import DiffusionSampler
from bigain.tokens.randomness import stable_hash

T = TypeVar("T")


@singledispatch
def rows_of(module: LightningModule, item: Item, draws: int) -> RowKeys:
    """Rows that an image surely has, at most so many. Another kind of module registers a function here.

    Args:
        module: Set up, with a trainer.
        item: The image.
        draws: Noise draws in classification, steps in generation.

    Returns:
        Keys `(d,)`, and classes where a class is meant.

    Raises:
        InputError: If the module's rows are not known.
    """
    raise InputError(
        f"the rows of {type(module).__name__} are not known, so the inspector cannot follow an image; expected "
        "DiffusionClassifier or DiffusionSampler; --inspect 0 does without"
    )


@rows_of.register
def _(module: DiffusionClassifier, item: Item, draws: int) -> RowKeys:
    # In the first stage, or before the first look of a race, every class is tried, so the true one is there.
    trials = torch.tensor(evenly(module.stages_of(item.image_id)[0], draws))
    keys = trial_keys(torch.tensor([stable_hash(item.image_id)]), trials, module.seed)
    return RowKeys(keys, torch.full_like(keys, next(iter(item.labels), 0)))


@rows_of.register
def _(module: DiffusionSampler, item: Item, draws: int) -> RowKeys:
    key = item_keys(torch.tensor([stable_hash(item.image_id)]), module.seed)
    steps = evenly(range(len(module.scheduler.timesteps)), draws)
    return RowKeys(torch.cat([step_keys(key, step) for step in steps]))


def evenly(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    if count == 1:
        return [values[0]]
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def matches(context: ForwardContext, wanted: RowKeys) -> tuple[torch.Tensor, list[int]]:
    """Where a forward has the wanted rows; waits for the device once.

    The last of several rows is meant: of a guided pair the one with its condition, of copies any.

    Args:
        context: The forward.
        wanted: On its device. `(m,)`.

    Returns:
        Row numbers `(r,)`, int64 on the device, and which of the wanted each one is.
    """
    same = context.keys[:, None] == wanted.keys
    if wanted.classes is not None:
        same &= context.classes[:, None] == wanted.classes
    number = torch.arange(1, len(same) + 1, device=same.device)[:, None]
    last = (same * number).amax(0).cpu()
    present = last.nonzero().squeeze(1)
    return (last[present] - 1).to(same.device), present.tolist()
