"""A trainer that prints nothing, on a CPU, and a logger that records what it is asked to show."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

QUIET = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"], False)


def quiet_trainer(*callbacks, **settings):
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**QUIET, **settings})


class RecordingLogger(Logger):
    """A logger with the interface of W&B's; `shown` has the pictures and numbers of all of them."""

    name, version = "recording", 0
    shown = {"scalars": {}, "pictures": {}}  # noqa: RUF012

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for tag, value in metrics.items():
            self.shown["scalars"].setdefault(tag, []).append((step, value))

    def log_image(self, key, images, step=None):
        self.shown["pictures"][key] = (step, images)
