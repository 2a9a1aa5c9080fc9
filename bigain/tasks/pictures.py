"""Pictures in the loggers of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image


def log_picture(logger: Logger, tag: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a logger that shows any: TensorBoard, MLflow, and those with W&B's `log_image`.

    All pictures are files of the run directory, too.
    """
    showing: Any = logger
    if isinstance(logger, TensorBoardLogger):
        showing.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        showing.experiment.log_image(logger.run_id, np.asarray(picture), f"{tag}.png")
    elif hasattr(logger, "log_image"):
        showing.log_image(key=tag, images=[picture], step=step)
