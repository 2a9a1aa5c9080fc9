"""Finished runs as a table of pandas."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bigain.errors import InputError
from bigain.report.document import run_lines
from bigain.report.rows import group_runs
from bigain.runs.results import find_runs

if TYPE_CHECKING:
    from pandas import DataFrame

_log = logging.getLogger(__name__)


def frame(*paths: str | Path) -> DataFrame:
    """Load finished runs into pandas: a row per run and metric, the columns and units of `runs.csv` of a report.

    Args:
        *paths: Run directories, or folders of run directories. What is left out is logged.

    Raises:
        InputError: If pandas is not installed, or there is no finished run.
    """
    try:
        import pandas
    except ImportError as error:
        raise InputError("a frame needs pandas; install bigain[pandas]") from error
    finished, left_out = find_runs([Path(path).expanduser() for path in paths])
    if not finished:
        raise InputError(f"nothing to load: {'; '.join(left_out.values()) or 'no run directory there'}")
    for reason in left_out.values():
        _log.warning(f"left out: {reason}")
    return pandas.DataFrame(run_lines(group_runs(finished)))
