"""Trainings that a search chooses one after the other, each by what all before it have shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rewarm.commands.arms import Arm, finished
from rewarm.commands.launch import Job
from rewarm.commands.leaving import Leaving, curves_of, like, planned
from rewarm.config.schema import SIDES
from rewarm.config.sweep_schema import SweepConfig
from rewarm.errors import DivergedError, UserError
from rewarm.forecast.options import Options
from rewarm.forecast.recommend import Goal
from rewarm.forecast.search import FEWEST, Proposal, propose
from rewarm.forecast.stopping import Asked
from rewarm.runs.run import is_run, open_run
from rewarm.storage import write_json
from rewarm.text import text_table, tokens_text

log = logging.getLogger(__name__)

WORTH = 5e-4
"""Least gain, in nats of the goal, that is worth another training."""
MOST_FAILED = 3
"""Trainings that may fail before any has been finished; one that fails later tells that its recipe is none."""
RECORD = "search.json"
"""What was predicted of each training when it was chosen."""


class Searching(Leaving):
    """Trainings, each chosen by what all before it have shown."""

    def __init__(
        self, pool: Sequence[Arm], tokens: int, goal: Options, folder: Path, earlier: Sequence[Arm] = ()
    ) -> None:
        """Take the pool in the order in which its trainings tell the most, and runs that were made before."""
        options = SweepConfig(stop="forecast")
        self._earlier = list(earlier)
        known = {arm.name for arm in earlier}
        pool = [arm for arm in pool if arm.name not in known]
        self._space, self._tokens, self._file = list(pool), tokens, folder / RECORD
        self._costs = {arm.name: planned(arm.config).tokens for arm in pool}
        self._made = [*self._earlier, *(arm for arm in pool if finished(arm))]
        begun = [arm for arm in pool if arm not in self._made and is_run(arm.folder)]
        self._given = [arm for arm in begun if open_run(arm.folder).stopped]
        self._interrupted = [arm for arm in begun if arm not in self._given]
        self._running: list[Arm] = []
        self._failed: list[Arm] = []
        self._hottest = np.inf
        """Max LR of the coolest training that diverged."""
        self._asked_for: tuple[int, ...] | None = None
        self.proposals: dict[str, Proposal] = _read(self._file)
        self.over = ""
        super().__init__([], [*self._earlier, *pool], options)
        self._options = goal

    @property
    def finished(self) -> list[Arm]:
        """Return the trainings that have come to their end."""
        return self._made

    def all(self) -> Sequence[Job]:
        """Return what is running."""
        return self._running

    def next(self) -> Job | None:
        """Return the next training to run; None where none is worth it, or others must end first."""
        arm = None if self.over else self._interrupted.pop() if self._interrupted else self._choose()
        if arm is not None:
            self._running.append(arm)
            self._arms = [*self._made, *self._running]
        return arm

    def done(self, ended: Job, code: int) -> None:
        """Take note that a training has ended, and say how all stands."""
        arm = next(arm for arm in self._running if arm.name == ended.name)
        self._running.remove(arm)
        super().done(ended, code)
        (self._made if code == 0 else self._given if ended.name in self._given_up else self._failed).append(arm)
        if code == DivergedError.exit_code:
            self._hottest = min(self._hottest, arm.config.max_lr)
            log.info("%s: diverged; nothing as hot is tried any more", arm.name)
        if code >= 128 and arm not in self._given:  # a signal to the search itself
            self.over = "stopped by a signal; the same command goes on"
        best = self.best()
        said = (
            f"best so far: {best[0].name}, {losses_text(best[1])}"
            if best
            else "no training so far keeps to the limit"
        )
        log.info("%s of %s tokens; %s", tokens_text(self.spent), tokens_text(self._tokens), said)

    def _asked_about(self) -> Sequence[Arm]:
        return list(self._running)

    @property
    def spent(self) -> float:
        """Return the tokens that have been trained on, but for those of earlier runs."""
        made = sum(self._costs[arm.name] for arm in self._made if arm not in self._earlier)
        return made + sum(_trained(arm) for arm in (*self._given, *self._failed, *self._running))

    @property
    def _free(self) -> float:
        """Return the tokens that are left when what is running has ended."""
        return self._tokens - self.spent - sum(self._costs[arm.name] - _trained(arm) for arm in self._running)

    def _choose(self) -> Arm | None:
        begun = [*self._made, *self._given, *self._running]
        gone = {arm.name for arm in (*begun, *self._failed)}
        free = self._free
        tried = (arm for arm in self._space if arm.config.max_lr < self._hottest)
        left = [arm for arm in tried if arm.name not in gone and self._costs[arm.name] <= free]
        if len(self._failed) >= MOST_FAILED and not self._made:
            self.over = f"the first {len(self._failed)} trainings failed"
            return None
        if not left:
            least = min((self._costs[arm.name] for arm in self._space if arm.name not in gone), default=np.inf)
            self.over = "the tokens are spent" if free < least < np.inf else "the whole space has been tried"
            return None
        if len(begun) < FEWEST:
            log.info("next: %s, one of the first %d, which lie far apart", left[0].name, FEWEST)
            return left[0]
        state = tuple(len(group) for group in (self._made, self._given, self._failed, self._running))
        if len(self._made) < FEWEST or state == self._asked_for:
            return None if self._running else left[0]
        self._asked_for = state
        found = self._proposal(left)
        if found is None or found.gain < WORTH:
            if not self._running:
                self.over = f"nothing else in the space is expected to gain {WORTH:g} nats"
            return None
        self.proposals[found.name] = found
        write_json(self._file, {name: asdict(proposal) for name, proposal in self.proposals.items()})
        ends = ", ".join(f"{side} {loss:.3f} (± {found.errors[side]:.3f})" for side, loss in found.predicted.items())
        log.info("next: %s, expected to gain %.4f nats: %s predicted", found.name, found.gain, ends)
        return next(arm for arm in left if arm.name == found.name)

    def _proposal(self, left: Sequence[Arm]) -> Proposal | None:
        curves = curves_of([*self._made, *self._given, *self._running])
        first = next(curve for curve in curves.values() if curve.finished)
        pool = {a.name: Asked(like(first, a.config), curves.get(a.name)) for a in (*left, *self._running)}
        return propose(list(curves.values()), pool, [arm.name for arm in self._running], self._options)

    def best(self) -> tuple[Arm, dict[str, float]] | None:
        """Return the best finished training and its final losses; None where none keeps to the limit."""
        ends = {arm.name: (arm, found) for arm in self._made if (found := ends_of(arm))}
        if not ends:
            return None
        before = start_of(self._made)
        goal = Goal.of(self._options, before["upstream"])
        kept = [e for e in ends.values() if e[1]["upstream"] <= before["upstream"] + goal.limit]
        return min(kept, key=lambda e: goal.value(e[1]), default=None)

    def table(self) -> str:
        """Return what was run: tokens, both losses as predicted and as they came."""
        rows, hows = [], {"earlier": self._earlier, "": self._made, "left early": self._given, "failed": self._failed}
        for arm in (*self._made, *self._given, *self._failed):
            said, came = self.proposals.get(arm.name), ends_of(arm) if arm in self._made else None
            cells = [f"{said.predicted[s]:.3f} ± {said.errors[s]:.3f}" if said else "" for s in SIDES]
            cells += [f"{came[side]:.4f}" if came else "" for side in SIDES]
            how = next(how for how, arms in hows.items() if arm in arms)
            rows.append((arm.name, tokens_text(_trained(arm)), *cells, how))
        head = ("run", "tokens", "upstream predicted", "downstream predicted", "upstream", "downstream", " ")
        return text_table(head, rows)


def _read(file: Path) -> dict[str, Proposal]:
    if not file.exists():
        return {}
    try:
        return {name: Proposal(**values) for name, values in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is damaged ({error}); remove it, only what was predicted is lost") from error


def _trained(arm: Arm) -> float:
    run = open_run(arm.folder) if is_run(arm.folder) else None
    return max(run.trained, 0) * run.plan.tokens_per_step if run else 0.0


def ends_of(arm: Arm) -> dict[str, float]:
    """Return the final losses of a finished run, empty where one of them is not finite."""
    summary = open_run(arm.folder).summary or {}
    ends = {side: summary[side]["final"] for side in SIDES if side in summary}
    return ends if len(ends) == len(SIDES) and all(v is not None and np.isfinite(v) for v in ends.values()) else {}


def start_of(arms: Sequence[Arm]) -> dict[str, float]:
    """Return the losses before any update, as finished runs have measured them."""
    starts = [open_run(arm.folder).summary or {} for arm in arms]
    return {side: float(np.mean([s[side]["start"] for s in starts])) for side in SIDES}


def losses_text(losses: Mapping[str, float]) -> str:
    """Return losses as text, each with its side."""
    return ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items())
