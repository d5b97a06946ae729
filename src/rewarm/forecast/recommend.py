"""From predicted outcomes to a choice: the Pareto front, and the best training within what may be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.errors import UserError
from rewarm.forecast.candidates import Candidate
from rewarm.forecast.options import Options
from rewarm.forecast.study import Band, Study


@dataclass(frozen=True)
class Outcome:
    """A candidate and the final losses predicted for it, each a band of one number."""

    candidate: Candidate
    sides: dict[str, Band]

    def final(self, side: str) -> float:
        """Return the predicted final loss, in nats a token."""
        return float(self.sides[side].loss[-1])


@dataclass(frozen=True)
class Recommendation:
    """What was chosen, and why. `chosen` is None where nothing qualifies."""

    goal: str
    chosen: Outcome | None
    reason: str
    equals: int
    """Candidates whose goal lies within the typical error of the best one's."""
    cheapest_equal: Outcome | None
    """The one of those with the smallest budget, where it is smaller than the chosen one's."""


def outcomes(study: Study, found: Sequence[Candidate]) -> list[Outcome]:
    """Return the predicted final losses of all candidates."""
    return [
        Outcome(
            candidate,
            {
                side: fitted.predict(candidate.trajectory, np.array([candidate.steps]))
                for side, fitted in study.sides.items()
            },
        )
        for candidate in found
    ]


def check_sides(study: Study) -> None:
    """Raise `UserError` where forgetting and learning cannot both be told."""
    missing = [side for side in ("upstream", "downstream") if side not in study.sides]
    if missing:
        raise UserError(
            f"a recommendation needs the losses upstream and downstream; there is no {missing[0]} "
            f"(found: {', '.join(study.sides)}); name the columns so"
        )


def start_loss(study: Study) -> float:
    """Return the upstream loss before any update: measured where it was, else predicted."""
    starts = []
    for curve in study.fitted:
        steps, losses = curve.losses["upstream"]
        if steps[0] == 0 and curve.trajectory.shifted:
            starts.append(losses[0])
    if starts:
        return float(np.mean(starts))
    first = study.fitted[0].trajectory
    return float(study.sides["upstream"].predict(first, np.array([0])).loss[0])


def pareto(found: Sequence[Outcome]) -> list[Outcome]:
    """Return those that no other beats on both losses, by rising upstream loss."""
    front: list[Outcome] = []
    for outcome in sorted(found, key=lambda o: (o.final("upstream"), o.final("downstream"))):
        if not front or outcome.final("downstream") < front[-1].final("downstream"):
            front.append(outcome)
    return front


def recommend(study: Study, found: Sequence[Outcome], options: Options) -> Recommendation:
    """Return the best candidate inside what the runs have seen: least weighted loss within `max_forgetting`."""
    start = start_loss(study)
    limit = np.inf
    if options.max_forgetting is not None:
        limit = options.max_forgetting * (start if options.forgetting_is_share else 1.0)
    up, down = options.weights or (0.0, 1.0)
    goal = "least downstream loss" if options.weights is None else f"least {up:g} upstream + {down:g} downstream loss"
    if np.isfinite(limit):
        goal += f" that forgets at most {limit:.4g} nats"
    inside = [o for o in found if not o.candidate.beyond]
    within = [o for o in inside if o.final("upstream") - start <= limit]
    if not within:
        if not inside:
            return Recommendation(goal, None, "every candidate lies outside what the runs have seen", 0, None)
        least = min(inside, key=lambda o: o.final("upstream"))
        reason = (
            f"none of {len(inside)} qualifies; the least forgotten is {least.final('upstream') - start:.4g} nats, "
        )
        return Recommendation(goal, None, reason + f"with {least.candidate.label}", 0, None)

    def value(outcome: Outcome) -> float:
        return up * outcome.final("upstream") + down * outcome.final("downstream")

    best = min(within, key=value)
    error = sum(
        weight * study.sides[side].spread * best.final(side)
        for weight, side in ((up, "upstream"), (down, "downstream"))
    )
    equals = [o for o in within if value(o) <= value(best) + error and o is not best]
    cheapest = min(equals, key=lambda o: (o.candidate.settings.budget, value(o)), default=None)
    if cheapest and cheapest.candidate.settings.budget >= best.candidate.settings.budget:
        cheapest = None
    return Recommendation(goal, best, f"best of {len(within)} that qualify", len(equals), cheapest)
