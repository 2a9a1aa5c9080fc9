"""A trainer that prints nothing, on a CPU."""

from lightning.pytorch import Trainer

QUIET = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"], False)


def quiet_trainer(*callbacks, **settings):
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**QUIET, **settings})
