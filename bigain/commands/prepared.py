"""A run that is made but not started: what its configuration says, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule

from bigain.commands.configs import find_config
from bigain.commands.lightning_cli import BiGainCLI
from bigain.commands.parsing import input_errors
from bigain.compressors import Compressor
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler

if TYPE_CHECKING:
    from typing_extensions import Self

MODULES: dict[str, type[LightningModule]] = {"classification": DiffusionClassifier, "generation": DiffusionSampler}


class Prepared(BiGainCLI):
    """The classes of a configuration, made but not run."""

    @classmethod
    def of(cls, task: str, command: Sequence[str]) -> Self:
        """Make them.

        Args:
            task: What the model has to do, `classification` or `generation`.
            command: `["predict", "--config", "pets_lgtm.yaml", ...]`.

        Raises:
            InputError: If the configuration is wrong or not of the task.
        """
        with input_errors("bigain predict"):
            cli = cls(find_config(command))
        if not isinstance(cli.model, MODULES[task]):
            raise InputError(f"{command[2]} is given for {task}, but its model is a {type(cli.model).__name__}")
        return cli

    def before_instantiate_classes(self) -> None:
        self.choose_directory()

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def compressors(self) -> list[Compressor]:
        """All of them, wherever they are named."""
        given = self.config_init[self.subcommand]
        callbacks = given.trainer.callbacks or []
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        return [callback for callback in [*listed, given.compressor] if isinstance(callback, Compressor)]
