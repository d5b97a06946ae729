"""Sweeps: what `-m` adds to a verb.

Each arm is an ordinary run, started by the ordinary command in a process of its own. The same command finds the same
folders again, so that a run that is done is not run twice and one that was cut continues; when all have ended it is
said how they compare.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from rewarm.commands import sweep_tables
from rewarm.commands.arms import Arm, Swept, arms_of, finished, job
from rewarm.commands.launch import Job, Source, here, on_slurm
from rewarm.config.command_line import CommandLine
from rewarm.config.compose import from_hydra
from rewarm.config.schema import SweepConfig

log = logging.getLogger(__name__)


class Listed(Source):
    """Arms that are all known beforehand, in order."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._left = [arm for arm in arms if not finished(arm)]
        for arm in arms:
            if arm not in self._left:
                log.info("%s: is finished already; nothing to do", arm.name)

    def next(self) -> Job | None:
        """Return the next arm to start, or None."""
        return job(self._left.pop(0)) if self._left else None

    def done(self, ended: Job, code: int) -> None:
        """Do nothing: no arm waits for another."""


def sweep(verb: str, line: CommandLine) -> None:
    """Do a verb for each arm; of training, say at the end how they compare. Raises the error that it ends with."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    swept = Swept.of(line)
    if verb != "train":
        _each(verb, line, arms_of(line, swept))
        return
    config = from_hydra(CommandLine(swept.fixed, line.folders).compose("run_dir=unused"))
    options = config.sweep
    if options.trials is not None:
        from rewarm.commands.optuna_sweep import Study

        source: Source = Study(line, swept, options.trials)
    else:
        arms = arms_of(line, swept)
        if line.shows:
            sys.stdout.write("".join(f"# {arm.name}\n{' '.join(arm.overrides)}\n" for arm in arms))
            return
        if any(arm.config.dry_run for arm in arms):
            from rewarm.commands.dry_run import describe_sweep

            sys.stdout.write(describe_sweep([(arm.name, arm.config) for arm in arms]))
            return
        source = Listed(arms)
    _run(line, swept, options, source)


def _run(line: CommandLine, swept: Swept, options: SweepConfig, source: Source) -> None:
    folders = tuple(f"--config-dir={folder}" for folder in line.folders)
    ended = (
        on_slurm(source, options, swept.folder, folders)
        if options.launcher == "slurm"
        else here(source, options, folders)
    )
    if swept.folder.is_dir() and sweep_tables.finished_runs(swept.folder)[0]:
        sys.stdout.write(sweep_tables.table(swept.folder, ended.failed))
        if options.trials is not None:
            sys.stdout.write(sweep_tables.pareto(swept.folder))
    if ended.error is not None:
        raise sweep_tables.failure(swept.folder, ended.error, ended.failed)


def _each(verb: str, line: CommandLine, arms: Sequence[Arm]) -> None:
    """Do a verb that trains nothing for each arm, one after the other. Raises the first error when all are done."""
    folders = tuple(f"--config-dir={folder}" for folder in line.folders)
    ended = here(Listed(arms), SweepConfig(jobs=1), folders, verb)
    if ended.error is not None:
        raise ended.error
