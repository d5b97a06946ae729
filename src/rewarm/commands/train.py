"""`rewarm train`: one run, or with `-m` a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewarm.commands.begin import begin
from rewarm.commands.launch import follow_sweep


def train(arguments: Sequence[str]) -> None:
    """Train as the arguments say; with `dry_run=true` say what that would be."""
    asked = begin("train", arguments)
    if asked is None:
        return
    if asked.config.dry_run:
        from rewarm.commands.dry_run import describe

        sys.stdout.write(describe(asked.config, asked.plan))
        return
    follow_sweep()
    from rewarm.training.run import run

    run(asked.config)
