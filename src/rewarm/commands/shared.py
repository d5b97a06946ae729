"""Sweeps whose runs begin alike: what several have in common is trained once, by the first of them.

Each is, to the last bit, the run that it would be alone. It begins in a copy of the other's folder at the step where
they part; until that step is saved, it waits.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rewarm.commands.arms import Arm, finished
from rewarm.commands.launch import Begins, Job, Source
from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import Beginning, beginnings
from rewarm.config.sweep_schema import ForkConfig
from rewarm.config.values import quoted
from rewarm.errors import RewarmError
from rewarm.model.shape import PAYS_FROM, run_flops
from rewarm.runs.checkpoint import CHECKPOINTS, steps
from rewarm.runs.fork import free
from rewarm.runs.run import is_run, open_run

log = logging.getLogger(__name__)

WORTH = 0.03
"""Share of a run that must be the same in another for it to be worth the wait."""


def share(arms: Sequence[Arm], made: Sequence[Arm] = ()) -> list[Arm]:
    """Return the arms with what each begins as, and what is saved for others; those that others wait for come first.

    `made` are arms that are finished: what they still have saved is used too.
    """
    found = _beginnings(arms)
    saved: dict[str, set[int]] = defaultdict(set)
    for arm, beginning in zip(arms, found, strict=True):
        if beginning:
            saved[arms[beginning.of].name].add(beginning.steps)
            saved[arm.name].add(beginning.steps)
    alike = _alike([arm for arm, beginning in zip(arms, found, strict=True) if beginning is None], made)
    completed = []
    for arm, beginning in zip(arms, found, strict=True):
        first, begins = alike.get(arm.name), None
        if beginning:
            first = arms[beginning.of]
            begins = Begins(first.name, first.folder, beginning.steps)
        completed.append(_forked(arm, first, begins, sorted(saved[arm.name])))
    awaited = {arm.begins.name for arm in completed if arm.begins}
    return sorted(completed, key=lambda arm: arm.name not in awaited)


def _alike(arms: Sequence[Arm], made: Sequence[Arm]) -> dict[str, Arm]:
    """Return by the name of an arm the finished one that it is like for longest, where there is one."""
    if not made:
        return {}
    found = _beginnings([*made, *arms])[len(made) :]
    return {arm.name: made[b.of] for arm, b in zip(arms, found, strict=True) if b and b.of < len(made)}


def _forked(arm: Arm, first: Arm | None, begins: Begins | None, saves: list[int]) -> Arm:
    """Return an arm whose command says what it begins as, and what it saves for others."""
    fork = ForkConfig(str(first.folder) if first else None, saves)
    words = [f"fork.run={quoted(fork.run)}"] if fork.run else []
    words += [f"fork.steps={quoted(fork.steps)}"] if fork.steps else []
    return replace(arm, arguments=(*arm.arguments, *words), begins=begins, config=replace(arm.config, fork=fork))


def left_of(arms: Sequence[Arm], *, shares: bool, leaves: bool = False) -> list[Arm]:
    """Return the arms that are not finished, in the order in which they are to be trained.

    Nor are those among them, where arms are left early, that were left already.
    """
    made = [arm for arm in arms if finished(arm)]
    for arm in made:
        log.info("%s: is finished already; nothing to do", arm.name)
    left = [arm for arm in arms if arm not in made]
    for arm in list(left) if leaves else ():
        if is_run(arm.folder) and (stopped := open_run(arm.folder).stopped):
            log.info("%s: %s; sweep.stop=none goes on with it", arm.name, stopped)
            left.remove(arm)
    return share(left, made) if shares else left


def _beginnings(arms: Sequence[Arm]) -> list[Beginning | None]:
    runs = [(arm.config, make_plan(arm.config)) for arm in arms]
    found = beginnings(runs, [_compiled(config, plan) for config, plan in runs])
    return [b if b and b.steps >= WORTH * plan.steps else None for b, (_, plan) in zip(found, runs, strict=True)]


def _compiled(config: Config, plan: Plan) -> tuple[bool, ...]:
    """Return for each type of device whether a run will be compiled there, which gives other last bits."""
    flops = run_flops(config, plan) or 0
    return tuple(config.train.compile is None and flops >= least for least in PAYS_FROM.values())


class Arms(Source):
    """Arms that are all known beforehand. One that begins as another waits until that is where they part."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._arms = list(arms)
        self._left = list(arms)
        self._ended: set[str] = set()

    def all(self) -> Sequence[Job]:
        """Return all arms that are left to run."""
        return self._arms

    def next(self) -> Job | None:
        """Return the next arm to start; None where there is none, or all wait for others."""
        for arm in self._left:
            if self._ready(arm):
                self._left.remove(arm)
                return arm
        return None

    def _ready(self, arm: Arm) -> bool:
        begins = arm.begins
        if begins is None or is_run(arm.folder) or max(steps(begins.folder / CHECKPOINTS), default=0) >= begins.step:
            return True
        if begins.name in self._ended:
            log.warning("%s: %s, as which it begins, did not get to step %d", arm.name, begins.name, begins.step)
        return begins.name in self._ended

    def to_leave(self) -> Sequence[str]:
        """Return no arm: each is run to its end."""
        return ()

    def done(self, ended: Job, code: int) -> None:  # noqa: ARG002 - what it saved is there however it ended
        """Take note that an arm has ended, and remove what was saved for others where none of them needs it now."""
        self._ended.add(ended.name)
        [fork] = [arm.config.fork for arm in self._arms if arm.name == ended.name]
        for folder in (*([str(ended.folder)] if fork.steps else []), *([fork.run] if fork.run else [])):
            if all(is_run(arm.folder) for arm in self._arms if arm.config.fork.run == folder):
                _free(Path(folder))


def _free(folder: Path) -> None:
    """Remove what a run that has ended has saved for others."""
    try:
        run = open_run(folder)
        if run.finished and run.config.fork.steps:
            free(run)
    except RewarmError as error:
        log.warning("%s", error)
