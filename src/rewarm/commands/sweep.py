"""Sweeps: what `-m` adds to a verb.

Each arm is an ordinary run, started by the ordinary command in a process of its own. The same command finds the same
folders again, so that a run that is done is not run twice and one that was cut continues; when all have ended it is
said how they compare.
"""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path

from rewarm.commands import sweep_tables
from rewarm.commands.arms import Swept
from rewarm.commands.launch import Source, here
from rewarm.commands.shared import Arms, left_of, share
from rewarm.commands.slurm import on_slurm
from rewarm.config.command_line import CommandLine
from rewarm.config.sweep_schema import SweepConfig


def sweep(verb: str, line: CommandLine) -> None:
    """Do a verb for each arm; of training, say at the end how they compare. Raises the error that it ends with."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    swept = Swept.of(line)
    first = swept.first()
    trials = first.config.sweep.trials if verb == "train" else None
    arms = swept.arms() if trials is None else [first]
    shares, leaves = first.config.sweep.share, verb == "train" and first.config.sweep.stop == "forecast"
    if leaves:
        from rewarm.commands.leaving import Leaving, in_telling_order

        arms = in_telling_order(arms)
    if line.shows:
        sys.stdout.write("".join(f"# {arm.name}\n{' '.join(arm.arguments)}\n" for arm in arms))
    elif verb == "train" and first.config.dry_run:
        from rewarm.commands.dry_run import describe_sweep

        sys.stdout.write(describe_sweep(share(arms) if shares else arms, trials))
        if leaves:
            sys.stdout.write("sweep.stop=forecast leaves arms that cannot win: these are the most\n")
    elif verb != "train":
        ended = here(Arms(arms), SweepConfig(jobs=1), verb)
        if ended.error is not None:
            raise ended.error
    elif trials is not None:
        from rewarm.commands.optuna_sweep import Study

        with closing(Study(swept, trials)) as study:
            _train(swept.folder, first.config.sweep, study)
    else:
        left = left_of(arms, shares=shares, leaves=leaves)
        options = first.config.sweep
        _train(swept.folder, options, Leaving(left, arms, options) if leaves else Arms(left))


def _train(folder: Path, options: SweepConfig, source: Source) -> None:
    ended = on_slurm(source, options, folder) if options.launcher == "slurm" else here(source, options)
    if folder.is_dir() and sweep_tables.finished_runs(folder)[0]:
        sys.stdout.write(sweep_tables.table(folder, ended.failed))
        if options.trials is not None:
            sys.stdout.write(sweep_tables.pareto(folder))
    if ended.error is not None:
        raise sweep_tables.failure(folder, ended.error, ended.failed)
