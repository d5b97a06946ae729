"""`sweep.stop=forecast`: arms of a sweep that cannot win are left early, and those that wait are not begun.

A run that is left saves and ends, as one does that is interrupted. Why it was left is written in its folder, and
holds until it has gone on: `sweep.stop=none` does that, to the run that it would have been.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from rewarm.commands.arms import Arm
from rewarm.commands.launch import Job
from rewarm.commands.shared import Arms
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import differing_keys
from rewarm.config.sweep_schema import SweepConfig
from rewarm.errors import LEFT, RewarmError
from rewarm.forecast import curves
from rewarm.forecast.curves import Curve, Trajectory, curve_of
from rewarm.forecast.options import Options
from rewarm.forecast.stopping import Asked, hopeless, telling_order
from rewarm.runs.folder import METRICS
from rewarm.runs.run import is_run, open_run
from rewarm.runs.stopped import Reason, Stopped, write_stopped

log = logging.getLogger(__name__)

TOLD_APART = {"replay", "seed"}
"""Keys, beside those of the schedule, in which arms may differ for the law to know both."""
REST = 20
"""How many times as long as the last look at the arms took the next one waits."""


def planned(config: Config) -> Trajectory:
    """Return the training that an arm is to be."""
    return curves.planned(config, make_plan(config))


def in_telling_order(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms in the order in which they tell the most, which is best where some will not be needed."""
    return [arms[i] for i in telling_order([planned(arm.config) for arm in arms])]


def like(curve: Curve, config: Config) -> Trajectory:
    """Return the training that an arm is to be, which begins where that of a curve does."""
    own = planned(config)
    return replace(curve.trajectory, lr=own.lr, warmup_steps=own.warmup_steps, replay=own.replay)


def curves_of(arms: Sequence[Arm]) -> dict[str, Curve]:
    """Return what arms have shown, by their names; those that have shown too little are left out."""
    found: dict[str, Curve] = {}
    for arm in arms:
        try:
            curve = curve_of(open_run(arm.folder), says=False) if is_run(arm.folder) else None
        except RewarmError:  # the run says so itself
            continue
        if curve is not None:
            found[arm.name] = replace(curve, name=arm.name)
    return found


class Leaving(Arms):
    """Arms of which those that cannot win are left early, by what finished arms and they themselves have shown."""

    def __init__(self, left: Sequence[Arm], every: Sequence[Arm], options: SweepConfig) -> None:
        """Take the arms that are `left` to run of `every` arm of the sweep."""
        super().__init__(left)
        weights = None if options.weights is None else (options.weights[0], options.weights[1])
        self._options = Options(paths=(), weights=weights, max_forgetting=options.max_forgetting)
        self._groups: list[list[Arm]] = []
        for arm in every:
            alike = (g for g in self._groups if TOLD_APART.issuperset(differing_keys(g[0].config, arm.config)))
            group = next(alike, None)
            if group is None:
                self._groups.append([arm])
            else:
                group.append(arm)
        self._given_up: dict[str, Reason] = {}
        self._looking: Future[dict[str, Reason]] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._rests_until = 0.0
        self._seen: list[int] = []
        self._given_up |= self._look()

    def next(self) -> Job | None:
        """Return the next arm to start; those that cannot win are passed over."""
        for arm in list(self._left):
            if arm.name in self._given_up:
                self._left.remove(arm)
                self._ended.add(arm.name)
                log.info("%s: not begun; %s", arm.name, self._given_up[arm.name])
        return super().next()

    def to_leave(self) -> Sequence[str]:
        """Return the names of arms that cannot win. Looks again, in the background, when there is news."""
        if self._looking is not None and self._looking.done():
            self._given_up |= self._looking.result()
            self._looking = None
        if self._looking is None and time.monotonic() >= self._rests_until:
            self._looking = self._pool.submit(self._look)
        return list(self._given_up)

    def done(self, ended: Job, code: int) -> None:
        """Take note that an arm has ended, and write down why where it was left."""
        super().done(ended, code)
        if code == LEFT and ended.name in self._given_up and is_run(ended.folder):
            stopped = Stopped(open_run(ended.folder).trained, self._given_up[ended.name])
            write_stopped(ended.folder, stopped)
            log.info("%s: %s", ended.name, stopped)

    def _asked_about(self) -> Sequence[Arm]:
        """Return the arms that may be given up."""
        return self._arms

    def _look(self) -> dict[str, Reason]:
        """Return the arms that cannot win, as all stand now. None where that cannot be told."""
        arms = [arm for group in self._groups for arm in group]
        sizes = [file.stat().st_size if (file := arm.folder / METRICS).exists() else 0 for arm in arms]
        if sizes == self._seen:
            return {}
        found: dict[str, Reason] = {}
        self._seen, began = sizes, time.monotonic()
        try:
            for group in self._groups:
                found |= self._of_group(group)
        except (ArithmeticError, ValueError) as error:  # a sweep does not end because a fit does
            log.warning("sweep.stop=forecast: the arms cannot be told for now (%s)", error)
        now = time.monotonic()
        self._rests_until = now + REST * (now - began)
        return found

    def _of_group(self, group: Sequence[Arm]) -> dict[str, Reason]:
        shown = curves_of(group)
        finished = [curve for curve in shown.values() if curve.finished]
        if not finished:
            return {}
        awaited = {arm.begins.name for arm in self._arms if arm.begins and not is_run(arm.folder)}
        names, asked = {arm.name for arm in group} - self._ended - awaited, {}
        for arm in self._asked_about():
            if arm.name not in names or arm.config.extend:
                continue
            curve = shown.get(arm.name)
            if curve is None or not curve.finished:
                asked[arm.name] = Asked(curve.trajectory if curve else like(finished[0], arm.config), curve)
        return hopeless(list(shown.values()), asked, self._options)
