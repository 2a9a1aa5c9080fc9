"""`bigain doctor --config X`: whether everything is here that the run needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from bigain.commands.configs import find_config
from bigain.commands.doctor import checks
from bigain.commands.doctor.checks import Check
from bigain.commands.parsing import Outcome, input_errors
from bigain.commands.predict import quieten
from bigain.commands.prepared import Prepared
from bigain.data import EvalDataModule
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier, DiffusionSampler
from bigain.runs.directory import check_directory
from bigain.runs.logs import finished_ids


class _Parsed(Prepared):
    """A trainer that cannot be had is remembered, not raised."""

    trainer_error: str | None = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError as error:
            self.trainer_error = str(error)
            return None  # type: ignore[return-value]


def doctor(*options: str) -> Outcome:
    """Check weights, network, data, references, disk and device of a configuration; loads and writes nothing heavy.

    Args:
        *options: As for `bigain predict`: --config pets_lgtm.yaml --data.root data

    Returns:
        The findings; complete if a run would work.

    Raises:
        InputError: If the configuration itself is wrong.
    """
    quieten()
    with input_errors("bigain predict"):
        cli = _Parsed(["predict", *find_config(options)])
    with _muted():
        found = list(diagnose(cli))
    return Outcome(report(found), not any(check.status == "problem" for check in found))


def report(found: Sequence[Check]) -> str:
    """Findings as text, one line each, a fix below where there is one."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.message}")
        if check.fix:
            lines.append(f"{'':<7}  {'':<{width}}  fix: {check.fix}")
    counts = [(sum(check.status == kind for check in found), kind) for kind in ("problem", "warning")]
    told = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for n, kind in counts if n)
    return "\n".join([*lines, told or "everything is here"]) + "\n"


def diagnose(cli: _Parsed) -> Iterator[Check]:
    """Look at weights, structure, data, disk and device, in this order."""
    module, data = cli.model, cli.datamodule
    assert isinstance(data, EvalDataModule)
    if not isinstance(module, (DiffusionClassifier, DiffusionSampler)):
        raise InputError(f"doctor knows the modules of bigain, not {type(module).__name__}")
    weights = list(checks.weights(module.backbone))
    yield from weights
    if len(weights) > 1:
        yield from _guarded("network", lambda: checks.network(module.backbone, data))
        with ExitStack() as installed:
            for compressor in cli.compressors():
                look = partial(checks.compression, compressor, module.backbone, data, installed)
                yield from _guarded(f"compressor/{type(compressor).__name__}", look)
    yield from _guarded("data", lambda: checks.dataset(data))
    yield from _guarded("data/images", lambda: checks.images(data))
    yield from _guarded("reference", lambda: checks.distance(module))
    yield from _guarded("run directory", lambda: _directory(cli))
    yield from checks.disk(cli.output, module, data)
    yield from checks.device(cli.trainer, cli.trainer_error, module.backbone)


@contextmanager
def _muted() -> Iterator[None]:
    """Silence what is a finding already."""
    logger = logging.getLogger("bigain")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Findings until the first refusal, which is a finding as well."""
    try:
        yield from look()
    except InputError as error:
        yield Check(name, "problem", str(error))


def _directory(cli: _Parsed) -> Iterator[Check]:
    config = cli.config[cli.subcommand]
    check_directory(cli.output, config)
    done = 0 if config.overwrite else len(finished_ids(cli.output / "predictions"))
    state = f"{done:,} images are done already" if done else "new"
    yield Check("run directory", "ok", f"{cli.output} ({state})")
