"""`rewarm diagnose`: says in plain lines what went wrong in trainings, ours or another trainer's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewarm.diagnose.checks import CHECKS, diagnose
from rewarm.diagnose.seen import FEWEST, Seen, of_csv, of_run
from rewarm.errors import UserError, nearest
from rewarm.forecast.options import LOGGED, Logged
from rewarm.runs.run import find_runs, open_run

log = logging.getLogger(__name__)

USAGE = "rewarm diagnose RUN_OR_FOLDER_OR_CSV... [key=value]"


def parse(arguments: Sequence[str]) -> tuple[list[Path], Logged]:
    """Return the paths, and what is said of CSV files. Raises `UserError` for what cannot be."""
    paths, said = [], {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        path = Path(argument).expanduser()
        if path.exists():
            paths.append(path)
        elif argument.startswith("-") or (sign and key not in LOGGED):
            raise UserError(f"{key}: unknown option{nearest(key, LOGGED)} (usage: {USAGE})")
        elif not sign:
            raise UserError(f"{argument}: no such run, folder or CSV file")
        else:
            said[key] = LOGGED[key](key, value)
    if not paths:
        raise UserError(f"diagnose: give a run's folder, a sweep's, or a CSV file (usage: {USAGE})")
    return paths, Logged(**said)  # type: ignore[arg-type]


def read(paths: Sequence[Path], logged: Logged) -> Iterator[Seen]:
    """Yield what is at the paths, one training after the other."""
    for path in paths:
        if path.is_file():
            yield of_csv(path, logged)
            continue
        for run in map(open_run, find_runs([path])):
            if run.damage:
                log.warning("%s", run.damage)
            yield of_run(run)


def text(seen: Seen) -> str:
    """Return the lines about one training."""
    planned = len(seen.lr)
    lines = [f"{seen.name}: {seen.last_step:,} of {planned:,} steps, {seen.amount(seen.last_step)}"]
    findings = diagnose(seen)
    for number, finding in enumerate(findings, 1):
        lines += [f"  {number}. {finding.what}: {finding.evidence}", f"     try: {finding.advice}"]
    most = max((len(series) for series in seen.sides.values()), default=0)
    few = f"; it was scored {most} times, and most checks need {FEWEST}" if most < FEWEST else ""
    if not findings:
        lines.append(f"  nothing wrong seen ({len(CHECKS)} checks{few})")
    return "\n".join(lines) + "\n"


def diagnose_all(arguments: Sequence[str]) -> None:
    """Run the verb."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for seen in read(*parse(arguments)):
        sys.stdout.write(text(seen))
