"""The command line of one run: from a configuration to objects and a run directory, through LightningCLI."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from bigain.backbones.loading import UNLOADABLE
from bigain.callbacks import FeatureResults, GenerationResults, PredictionWriter, ResultsWriter, SampleWriter
from bigain.commands.configs import find_config, option_of, settings_of
from bigain.commands.options import OPTIONS, add_options, check_seed
from bigain.commands.parsing import (
    classes_of,
    input_errors,
    options_of,
    readable,
    refuse_nulls,
    unknown_argument,
    wrapped_input_error,
)
from bigain.commands.termination import end_at_signals
from bigain.compressors.base import Compressor, compressors_of
from bigain.cost.timing import Timing
from bigain.data import EvalDataModule
from bigain.errors import InputError, message_of
from bigain.inspector import Inspector
from bigain.modules import DiffusionClassifier, DiffusionSampler, FeatureProbe
from bigain.runs.configuration import fingerprint
from bigain.runs.directory import check_directory, run_directory
from bigain.runs.files import write_text
from bigain.tasks.probe import TRAINING
from bigain.tasks.progress import Progress
from bigain.tasks.results_writer import RunResults

# Module, log and results of each task.
_TASKS: dict[str, tuple[type[LightningModule], type[PredictionWriter], type[RunResults]]] = {
    "classification": (DiffusionClassifier, PredictionWriter, ResultsWriter),
    "generation": (DiffusionSampler, SampleWriter, GenerationResults),
    "features": (FeatureProbe, PredictionWriter, FeatureResults),
}


class BiGainCLI(LightningCLI):
    """LightningCLI with a `compressor`, one `seed`, and a run directory."""

    def __init__(self, args: Sequence[str], uncompressed_into: Path | None = None) -> None:
        """Parse and run a command line from `predict` on, or the same without any compressor into a directory."""
        self.uncompressed_into = uncompressed_into
        self._args = args
        with input_errors("bigain predict"):
            super().__init__(
                model_class=LightningModule,
                datamodule_class=EvalDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={
                    "prog": "bigain",
                    "description": "Evaluate token compression for diffusion models.",
                    "exit_on_error": False,
                    "predict": {"description": "Settings of Lightning's Trainer. The others: bigain predict --help"},
                },
                args=find_config(args),
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"predict": {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Compressor, "compressor", subclass_mode=True, required=False)
        add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # The parent warns when both `args` and sys.argv are given, which is how an entry point calls it.
        with input_errors("bigain predict", self._parser("predict")._option_string_actions):
            while True:
                try:
                    self.config = parser.parse_args(args)
                    break
                except ArgumentError as error:
                    args = _as_mapping(args, str(error))
                    if args is None:
                        raise
        config = self.config[self.config.subcommand]
        _check_arguments(args, config)
        for _, section in classes_of("", config):
            if "seed" in section.init_args:
                section.init_args.seed = config.seed

    def before_instantiate_classes(self) -> None:
        """Set `fingerprint` and `output`; write nothing."""
        config = self.config[self.subcommand]
        check_seed(config.seed)
        if self.uncompressed_into is not None:
            config.compressor = None
        self.fingerprint = fingerprint(config)
        output = self.uncompressed_into or config.output or config.trainer.default_root_dir
        if config.extend and not output:
            raise InputError("--extend true continues an existing run; name its directory with --output")
        stem = "+".join(Path(str(path)).stem for path in config.get("config") or ["predict"])
        self.output = Path(output or f"runs/{stem}-{self.fingerprint[:8]}").expanduser()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.config[self.subcommand].trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(self.output, name="tensorboard", version="")
        try:
            trainer = super().instantiate_trainer(default_root_dir=str(self.output), **kwargs)
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                # The launcher would check this only when it starts.
                launcher.cluster_environment.validate_settings(launcher.num_processes, launcher.num_nodes)
        except InputError:
            raise
        except (MisconfigurationException, *UNLOADABLE) as error:
            raise InputError(f"cannot create a Trainer with these settings: {error}") from error
        if isinstance(launcher, _MultiProcessingLauncher):
            raise InputError(
                f"--trainer.strategy {self.config[self.subcommand].trainer.strategy} copies this process; use "
                "--trainer.strategy ddp, which starts one program per device"
            )
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1 and trainer.world_size != processes:
            raise InputError(
                f"{processes} processes were launched, but the trainer has {trainer.world_size}; set the processes of "
                "one machine with --trainer.devices, and the number of machines with --trainer.num_nodes"
            )
        return trainer

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if wrapped_input_error(error) is not None:
                raise
            # The parser accepts null for every type; the class does not.
            raise InputError(f"cannot create the classes with these settings: {readable(str(error))}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_progress_bar") is None:
            # In a file, a progress bar is one endless line.
            config["enable_progress_bar"] = sys.stdout.isatty()
        config["callbacks"] = [
            callback
            for callback in [Progress(), *_as_list(config.get("callbacks")), *callbacks]
            # `compressor: null` arrives as a callback that is None.
            if callback is not None and not (self.uncompressed_into and isinstance(callback, Compressor))
        ]
        return super()._instantiate_trainer(config, self._task_callbacks())

    def _task_callbacks(self) -> list[Callback]:
        """Return the callbacks that write the run directory, by the module's task."""
        config = self.config[self.subcommand]
        # The inspector comes first: its pictures are on disk before an image counts as finished.
        inspectors = [Inspector(config.inspect)] if config.inspect else []
        # In place of Lightning's handlers, which wait for processes that may have ended.
        signals = LambdaCallback(on_predict_start=lambda *_: end_at_signals())
        for module, writer, results in _TASKS.values():
            if isinstance(self.model, module):
                return [*inspectors, writer(resume=True), results(self.fingerprint), Timing(), signals]
        names = ", ".join(module.__name__ for module, *_ in _TASKS.values())
        raise InputError(f"bigain predict runs {names} and their subclasses, not {type(self.model).__name__}")

    def predict(self, **kwargs: Any) -> None:
        """Run the trainer's predict loop; predictions go to disk, not into memory."""
        config = self.config[self.subcommand]
        if isinstance(self.model, FeatureProbe) and self.model.train_data is not None:
            check_directory(self.output, config)
            self._probe_training(self.model.train_data, self.output / TRAINING)
        for compressor in compressors_of(self.trainer):
            compressor.check_module(self.model)
        if config.extend or config.overwrite:
            # Finds out whether model and images are there before the directory loses or changes anything.
            self.model.backbone.find()
            self.datamodule.setup("predict")
        with run_directory(self.output, config) if self.trainer.is_global_zero else nullcontext():
            if self.trainer.is_global_zero:
                # The merged configuration, without the seeds that `seed` sets.
                merged = config.clone()
                for _, section in classes_of("", merged):
                    section.init_args.pop("seed", None)
                write_text(self.output / "config.yaml", self._parser(self.subcommand).dump(merged, skip_unset=False))
            self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False)

    def _probe_training(self, data: dict[str, Any], folder: Path) -> None:
        """Run the same command on the training data of a linear probe."""
        settings = {**dict.fromkeys(("limit", "per_class", "subset")), **data}
        options = [option_of(f"data.{name}", value) for name, value in settings.items()]
        options += [["--model.train_data", "null"], ["--inspect", "0"], ["--output", str(folder)]]
        try:
            type(self)([*self._args, *itertools.chain.from_iterable(options)], self.uncompressed_into and folder)
        except InputError as error:
            raise InputError(f"{message_of(error).removeprefix('data.')} (in the run on model.train_data)") from error


def _as_list(callbacks: Any) -> list[Callback]:
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _as_mapping(args: Sequence[str], message: str) -> list[str] | None:
    """Return a command line whose refused value is passed inside a mapping; None if that does not help.

    jsonargparse reads the text `{}` or `photo: {}` as a mapping, and `null` inside a dataclass as text.
    """
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    values, options = options_of(args)
    for option, *arguments in options:
        path, _, value = option.partition("=")
        parent, _, name = path.rpartition(".")
        value = value or " ".join(arguments)
        if not keys or not path.endswith(f".{keys[-1]}"):
            continue
        if "Expected a <class 'str'>" in message:
            replacement = [f"{parent.removesuffix('.init_args')}.init_args", json.dumps({name: value})]
        elif value in ("null", "None", "~"):
            replacement = [parent, json.dumps({name: None})]
        else:
            continue
        other_options = [words for words in options if words != [option, *arguments]]
        return [*values, *itertools.chain.from_iterable(other_options), *replacement]
    return None


def _check_arguments(args: Sequence[str], config: Namespace) -> None:
    """Raise an InputError for arguments that jsonargparse accepts and a class does not, and for a different seed."""
    if not isinstance(config.trainer, Namespace):
        raise InputError(f"trainer is {config.trainer!r}; expected its settings by name, such as devices: 1")
    for name, kind, _, _ in OPTIONS:
        if config[name] is None and "None" not in str(kind):
            raise InputError(f"{name} is null; leave it out for its default")
    settings = dict(settings_of(args))
    for path, section in [*classes_of("", config), ("trainer", config.trainer), ("", config)]:
        for name in (name.removeprefix(f"{path}.") for name, value in settings.items() if value == {}):
            exists = name.partition(".")[0] in section.get("init_args", section)
            if (not path or f"{path}.{name}" in settings) and not exists:
                if "class_path" in section:
                    raise unknown_argument(path, section.class_path, name)
                raise InputError(f"{path or 'the configuration'} has no setting {name}")
    refuse_nulls(config)
    for path, section in classes_of("", config):
        seed = section.init_args.get("seed", config.seed)
        if seed != config.seed and f"{path}.seed" in settings:
            raise InputError(
                f"{path}.seed is {seed} and seed is {config.seed}, but a run has one seed: leave {path}.seed out, or "
                f"use --seed {seed}"
            )


class Prepared(BiGainCLI):
    """The classes of a configuration, created but not run: nothing is loaded or written."""

    @classmethod
    def of(cls, task: str, command: Sequence[str]) -> Self:
        """Create the classes of `["predict", "--config", "pets_lgtm.yaml", ...]`, which has to be of this task."""
        prepared = cls(command)
        if not isinstance(prepared.model, _TASKS[task][0]):
            raise InputError(f"{command[2]} is for {task}, but its model is a {type(prepared.model).__name__}")
        return prepared

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def compressors(self) -> list[Compressor]:
        """Return the compressors, from both places that can name them."""
        config = self.config_init[self.subcommand]
        listed = _as_list(config.trainer.callbacks)
        return [callback for callback in [*listed, config.compressor] if isinstance(callback, Compressor)]

    @property
    def not_applicable(self) -> str:
        """Why a compressor cannot do the task; empty if all can."""
        reasons = [compressor.generation_only for compressor in self.compressors()]
        return "" if self.model.generates else next(filter(None, reasons), "")


class WithoutTrainer(Prepared):
    """Stores the error, instead of raising it, if this machine has no trainer for the settings."""

    trainer_error = ""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError as error:
            self.trainer_error = str(error)
            return None  # type: ignore[return-value]
