"""Sweeps: what `-m` adds to a verb.

Each arm is an ordinary run, started by the ordinary command in a process of its own. The same command finds the same
folders again, so that a run that is done is not run twice and one that was cut continues; when all have ended it is
said how they compare.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rewarm.commands import sweep_tables
from rewarm.commands.arms import Arm, Swept, finished
from rewarm.commands.launch import Job, Source, here, on_slurm
from rewarm.config.command_line import CommandLine
from rewarm.config.schema import SweepConfig

log = logging.getLogger(__name__)


class Listed(Source):
    """Arms that are all known beforehand, in order."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._left = list(arms)

    def next(self) -> Job | None:
        """Return the next arm to start, or None."""
        return self._left.pop(0) if self._left else None

    def done(self, ended: Job, code: int) -> None:
        """Do nothing: no arm waits for another."""


def sweep(verb: str, line: CommandLine) -> None:
    """Do a verb for each arm; of training, say at the end how they compare. Raises the error that it ends with."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    swept = Swept.of(line)
    first = swept.first()
    trials = first.config.sweep.trials if verb == "train" else None
    arms = swept.arms() if trials is None else [first]
    if line.shows:
        sys.stdout.write("".join(f"# {arm.name}\n{' '.join(arm.arguments)}\n" for arm in arms))
    elif verb == "train" and first.config.dry_run:
        from rewarm.commands.dry_run import describe_sweep

        sys.stdout.write(describe_sweep([(arm.name, arm.config) for arm in arms], trials))
    elif verb != "train":
        ended = here(Listed(arms), SweepConfig(jobs=1), verb)
        if ended.error is not None:
            raise ended.error
    elif trials is not None:
        from rewarm.commands.optuna_sweep import Study

        _train(swept.folder, first.config.sweep, Study(swept, trials))
    else:
        _train(swept.folder, first.config.sweep, Listed(_unfinished(arms)))


def _unfinished(arms: Sequence[Arm]) -> list[Arm]:
    left = [arm for arm in arms if not finished(arm)]
    for arm in arms:
        if arm not in left:
            log.info("%s: is finished already; nothing to do", arm.name)
    return left


def _train(folder: Path, options: SweepConfig, source: Source) -> None:
    ended = on_slurm(source, options, folder) if options.launcher == "slurm" else here(source, options)
    if folder.is_dir() and sweep_tables.finished_runs(folder)[0]:
        sys.stdout.write(sweep_tables.table(folder, ended.failed))
        if options.trials is not None:
            sys.stdout.write(sweep_tables.pareto(folder))
    if ended.error is not None:
        raise sweep_tables.failure(folder, ended.error, ended.failed)
