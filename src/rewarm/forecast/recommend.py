"""From predicted and measured outcomes to a choice: the Pareto front, and the best training within a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rewarm.errors import UserError
from rewarm.forecast.averages import Averages, Scored, predicted
from rewarm.forecast.candidates import Candidate
from rewarm.forecast.coverage import measured_start, of_usual_start
from rewarm.forecast.curves import Curve
from rewarm.forecast.fitted import Band, Study
from rewarm.forecast.history import Array
from rewarm.forecast.options import Options
from rewarm.points import pareto_front


@dataclass(frozen=True)
class Outcome:
    """A candidate and the final losses predicted for it, each a band of one number."""

    candidate: Candidate
    sides: dict[str, Band]
    average: str = ""
    """Which average of the training it is, as `rewarm merge` calls it; empty for its end."""

    @property
    def label(self) -> str:
        """Return what it is."""
        return self.candidate.label + (f", average {self.average}" if self.average else "")

    def final(self, side: str) -> float:
        """Return the predicted final loss, in nats a token."""
        return float(self.sides[side].loss[-1])

    @property
    def finals(self) -> dict[str, float]:
        """Return the predicted final losses, in nats a token."""
        return {side: self.final(side) for side in self.sides}


@dataclass(frozen=True)
class Arm:
    """A training that was run to its end, with its seeds."""

    curves: tuple[Curve, ...]
    average: Scored | None = None
    """An average of its runs that was scored, in place of their ends."""

    @property
    def finals(self) -> dict[str, float]:
        """Return the measured final losses, means over the seeds, in nats a token."""
        if self.average is not None:
            return self.average.losses
        sides = set.intersection(*(set(curve.losses) for curve in self.curves))
        return {side: float(np.mean([curve.losses[side][1][-1] for curve in self.curves])) for side in sides}

    @property
    def label(self) -> str:
        """Return the name of its first run, and how many there are."""
        average = f", average {self.average.label}" if self.average else ""
        return self.curves[0].name + (f" ({len(self.curves)} seeds)" if len(self.curves) > 1 else "") + average


@dataclass(frozen=True)
class Goal:
    """What a recommendation makes as small as it can, and what it keeps to."""

    upstream: float
    """Weight of the upstream loss."""
    downstream: float
    limit: float
    """Most that the upstream loss may rise, in nats; infinite where anything may be lost."""

    @classmethod
    def of(cls, options: Options, start: float) -> Goal:
        """Return what the options ask for; `start` is the upstream loss before any update."""
        limit = np.inf if options.max_forgetting is None else options.max_forgetting
        return cls(*(options.weights or (0.0, 1.0)), limit * (start if options.forgetting_is_share else 1.0))

    def value(self, losses: Mapping[str, float]) -> float:
        """Return the weighted sum of both losses, in nats."""
        return self.upstream * losses["upstream"] + self.downstream * losses["downstream"]

    def values(self, upstream: Array, downstream: Array, before: float) -> Array:
        """Return the weighted sums of losses, infinite where more is lost than may be; `before` is the start's."""
        total = self.upstream * upstream + self.downstream * downstream
        return np.where(upstream <= before + self.limit, total, np.inf)

    def __str__(self) -> str:
        parts = [(self.upstream, "upstream"), (self.downstream, "downstream")]
        used = [(weight, side) for weight, side in parts if weight]
        total = " + ".join(side if len(used) == 1 else f"{weight:g} {side}" for weight, side in used)
        keeps = f" that loses at most {self.limit:.4g} nats upstream" if math.isfinite(self.limit) else ""
        return f"least {total} loss{keeps}"


@dataclass(frozen=True)
class Recommendation:
    """What was chosen, and why."""

    take: Literal["predicted", "measured", "nothing"]
    goal: Goal
    arm: Arm | None
    """The best measured arm within the limit, advised or not; None where no arm keeps to it."""
    reason: str
    chosen: Outcome | None = None
    """The predicted training, where that is advised."""
    error: float = 0.0
    """Typical error of the forecast in what is minimised, in nats."""
    equals: int = 0
    """Candidates whose goal lies within that of the chosen one's."""
    cheapest_equal: Outcome | None = None
    """The one of those with the fewest tokens, where these are fewer than the chosen one's."""


def outcomes(study: Study, found: Sequence[Candidate]) -> list[Outcome]:
    """Return the predicted final losses of all candidates for which a number is given."""
    return [
        Outcome(
            candidate,
            {
                side: fitted.predict(candidate.trajectory, np.array([candidate.steps]))
                for side, fitted in study.sides.items()
            },
        )
        for candidate in found
        if not candidate.withheld
    ]


def averaged(study: Study, averages: Averages, found: Sequence[Outcome], start: dict[str, float]) -> list[Outcome]:
    """Return the averages of trainings that lie inside what the runs cover, as far as they can be predicted."""
    return [
        replace(outcome, sides=sides, average=label)
        for outcome in found
        if not outcome.candidate.beyond
        for label, sides in predicted(study, averages, outcome.candidate.trajectory, start, outcome.sides).items()
    ]


def check_sides(study: Study) -> None:
    """Raise `UserError` where forgetting and learning cannot both be told."""
    missing = [side for side in ("upstream", "downstream") if side not in study.sides]
    if missing:
        raise UserError(
            f"a recommendation needs the losses upstream and downstream; there is no {missing[0]} "
            f"(found: {', '.join(study.sides)}); name the columns so"
        )


def start_losses(study: Study) -> dict[str, float]:
    """Return the losses before any update: measured where they were, else predicted."""
    like, found = of_usual_start(study.fitted)[0].trajectory, {}
    for side, fitted in study.sides.items():
        measured = measured_start(study.fitted, side)
        found[side] = float(fitted.predict(like, np.array([0])).loss[0]) if measured is None else measured
    return found


def predicted_finals(
    study: Study, arm: Arm, averages: Averages | None, start: dict[str, float]
) -> list[dict[str, float]]:
    """Return the final losses that the law gives an arm that was run, and those of its averages, in nats a token."""
    t = arm.curves[0].trajectory
    ends = {side: fitted.predict(t, np.array([len(t.lr)])) for side, fitted in study.sides.items()}
    found = [ends, *(predicted(study, averages, t, start, ends).values() if averages else ())]
    return [{side: float(band.loss[0]) for side, band in bands.items()} for bands in found]


def pareto(found: Sequence[Outcome]) -> list[Outcome]:
    """Return those that no other beats on both losses, by rising upstream loss."""
    return [found[i] for i in pareto_front([(o.final("upstream"), o.final("downstream")) for o in found])]


def _affordable(curve: Curve, options: Options) -> bool:
    """Return whether a run kept to the tokens and the replay that were asked for, if any were."""
    t, most = curve.trajectory, max(options.stop or options.budget, default=np.inf)
    return t.tokens <= 1.01 * most and (not options.replay or any(np.isclose(t.replay, options.replay)))


def arms_of(curves: Sequence[Curve], averages: Averages | None = None) -> list[Arm]:
    """Return the arms that were run to their end on new data from the usual start, each with its seeds.

    What was scored of `averages` of these runs is an arm each.
    """
    found: dict[str, list[Curve]] = {}
    for curve in of_usual_start(curves):
        if curve.finished and curve.trajectory.shifted:
            found.setdefault(curve.arm, []).append(curve)
    names = {curve.name for members in found.values() for curve in members}
    scored: dict[tuple[str, str], list[Scored]] = {}
    for one in (s for kind in (averages.scored if averages else {}).values() for s in kind):
        if one.curve.name in names:
            scored.setdefault((one.curve.arm, one.label), []).append(one)
    return [Arm(tuple(members)) for members in found.values()] + [_averaged_arm(seeds) for seeds in scored.values()]


def _averaged_arm(seeds: Sequence[Scored]) -> Arm:
    """Return one average of each seed as an arm."""
    losses = {side: float(np.mean([s.losses[side] for s in seeds])) for side in seeds[0].losses}
    return Arm(tuple(s.curve for s in seeds), replace(seeds[0], losses=losses))


def recommend(
    study: Study, found: Sequence[Outcome], options: Options, faults: Sequence[str], averages: Averages | None = None
) -> Recommendation:
    """Return the best training, or average of one, by the goal of the options.

    A predicted training must lie inside what the runs cover, keep to the limit with the upper end of its band, and
    beat the best measured arm by more than the error of the forecast: both as the arm came out and as the law has it.
    Else that arm is the advice. Neither is where the model as it was is better. Where the forecast has `faults`, no
    predicted training is advised.
    """
    before = start_losses(study)
    goal = Goal.of(options, before["upstream"])
    most = before["upstream"] + goal.limit
    ran = [arm for arm in arms_of(study.curves, averages) if all(_affordable(c, options) for c in arm.curves)]
    arms = [arm for arm in ran if arm.finals["upstream"] <= most]
    arm = min(arms, key=lambda arm: goal.value(arm.finals), default=None)
    inside = [o for o in found if not o.candidate.beyond]
    within = [o for o in inside if float(o.sides["upstream"].high[-1]) <= most]
    best = min(within, key=lambda o: goal.value(o.finals), default=None)
    if faults:
        return Recommendation("nothing", goal, arm, "the forecast is not reliable, see below")
    error = 0.0
    if best is not None:
        error = goal.value({side: float(band.error[-1]) for side, band in best.sides.items()})
    betters = arm is not None and goal.value(arm.finals) < goal.value(before)
    known = goal.value(arm.finals) if arm is not None and betters else goal.value(before)
    # An arm that the law takes to be better than it came out would be beaten by itself, and by all near it.
    taken = [finals for a in ran if a.average is None for finals in predicted_finals(study, a, averages, before)]
    known = min([known, *(goal.value(finals) for finals in taken if finals["upstream"] <= most)])
    if best is None or goal.value(best.finals) > known - error:
        if best is not None:
            gain = known - goal.value(best.finals)
            than = f"{abs(gain):.4g} nats {'better' if gain > 0 else 'worse'} than runs came out, or the law has them"
            reason = f"the best of {len(within)} predicted trainings is {than}; the forecast errs by {error:.4g}"
        elif inside:
            sure = min(float(o.sides["upstream"].high[-1]) for o in inside) - before["upstream"]
            reason = f"each of {len(inside)} predicted trainings may lose {sure:.4g} nats or more"
        else:
            reason = "nothing that was asked for lies inside what the runs cover"
        if not betters:
            reason = f"no arm that was run keeps to it and betters the model as it was, and {reason}"
        return Recommendation("measured" if betters else "nothing", goal, arm, reason, error=error)
    equals = [o for o in within if goal.value(o.finals) <= goal.value(best.finals) + error and o is not best]
    cheaper = [o for o in equals if o.candidate.settings.stop < best.candidate.settings.stop]
    cheapest = min(cheaper, key=lambda o: (o.candidate.settings.stop, goal.value(o.finals)), default=None)
    reason = f"the best of {len(within)} predicted trainings that the runs cover"
    reason += " and that keep to it" if np.isfinite(goal.limit) else ""
    return Recommendation("predicted", goal, arm, reason, best, error, len(equals), cheapest)
