"""`bigain doctor`: check that everything a run needs is available."""

from __future__ import annotations

from bigain.commands.options import checked
from bigain.commands.parsing import Outcome
from bigain.report.tables import Table
from bigain.runs.numbers import counted


def doctor(*options: str) -> Outcome:
    """Check weights, network, data, references, disk and device of a configuration, without a run.

    Args:
        *options: As for `bigain predict`: --config pets_lgtm.yaml --data.root data

    Returns:
        The checks; complete if a run would work.

    Raises:
        InputError: If the configuration itself is wrong.
    """
    checked(["predict", *options])
    from bigain.commands.checks import run_checks

    checks, rows = run_checks(options), []
    for check in checks:
        rows += [(check.status, check.name, check.message), *([("", "", f"fix: {check.fix}")] if check.fix else [])]
    counts = {status: sum(check.status == status for check in checks) for status in ("problem", "warning")}
    verdict = ", ".join(counted(n, status) for status, n in counts.items() if n) or "everything is here"
    return Outcome(f"{Table((), rows).plain()}\n{verdict}\n", not counts["problem"])
