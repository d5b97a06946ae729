"""What averages of weights come to, for trainings that nobody has run: from those that `rewarm merge` has scored.

On the line from the start of a training to its end the loss is `(1 - a) start + a end - bend a (1 - a)`, with one
bend for both validation sets. It grows with the area under the LR, and with how little that has fallen in the end.

An average over the last part of a run is a virtual schedule: each update counts with a weight that falls to 0 (WSM,
arXiv 2507.17634). The law says what that schedule gains over the run's own LR; averages gain a share of that.

Bends and shares are interpolated between the runs that have them, and held out run by run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve
from scipy.stats import norm

from rewarm.config.schema import SIDES
from rewarm.forecast.bands import LEVEL
from rewarm.forecast.coverage import FALLEN, SLACK, fallen
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.fitted import Band, Study
from rewarm.forecast.history import Array
from rewarm.forecast.judge import POOR_FINAL
from rewarm.report.merging import SAME, Losses, Merged, Row, read_merged

LEAST = 1e-6
"""Nats that stand for none where a logarithm is taken."""
FEWEST = 3
"""Runs with averages from which on one more can be predicted."""
WIDTHS = np.array([1.5, 3.0, 1.5])
"""Over which bends and shares stay alike: of the logs of area, of last LR over highest, of the window's length."""
SPREAD, NOISE = 0.5, 0.1
"""Standard deviations of the log of a bend or a share: over all runs, and for one of a kind."""
ALPHAS = tuple(round(0.1 * i, 1) for i in range(1, 10))
WINDOWS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Scored:
    """An average that was scored, of a run whose losses are known."""

    curve: Curve
    label: str
    losses: dict[str, float]
    alpha: float | None
    """How far it lies from start to end; None for an average over the last part of the run."""
    counts: Array
    """With which weight each update counts in it."""


@dataclass(frozen=True)
class Missed:
    """An average beside what was predicted for it without its run. Nats a token."""

    run: str
    label: str
    side: str
    measured: float
    predicted: float
    beyond: bool
    """Whether its LR lies outside those of the runs that it was predicted from, in area or in how far it fell."""

    @property
    def error(self) -> float:
        """Return the error as a share of what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Averages:
    """Predicts averages, each kind as far as it was seen and can be trusted."""

    scored: dict[str, list[Scored]]
    """By kind, `line` or `window`."""
    known: dict[str, Known]
    """Likewise, where there are any."""
    held_out: dict[str, list[Missed]]
    """By kind; empty for one that fewer than three arms have."""

    def error(self, kind: str) -> float:
        """Return the root mean square of the errors on held-out averages of a kind, a share; infinite for none."""
        missed = self.held_out[kind]
        inside = [m for m in missed if not m.beyond] or missed
        return math.sqrt(np.mean([m.error**2 for m in inside])) if inside else math.inf

    def predicts(self, kind: str, trajectory: Trajectory) -> bool:
        """Return whether a kind was seen often enough, missed by little enough, and around such a training."""
        return self.error(kind) <= POOR_FINAL and not _beyond(trajectory, self.scored[kind])


def _counts(row: Row, curve: Curve) -> Array | None:
    """Return with which weight each update counts in an average of checkpoints; None where it is no such one."""
    steps = [re.fullmatch(r".*@step(\d+)", name) for name in row.made_of]
    if not all(steps):
        return None
    weights = {int(match[1]): weight for match, weight in zip(steps, row.made_of.values(), strict=True) if match}
    at = np.arange(1, len(curve.trajectory.lr) + 1)
    counts = np.zeros(len(at))
    for step, weight in weights.items():
        counts += weight * (at <= step)
    return counts


def _of(merged: Merged, curve: Curve) -> Iterable[Scored]:
    ones = np.ones(len(curve.trajectory.lr))
    # A line may begin at another model than the run did.
    first = merged.rows[0].losses
    for row in merged.rows:
        if row.is_end:
            continue
        losses = dict(zip(SIDES, row.losses, strict=True))
        counts = _counts(row, curve) if row.alpha is None else row.alpha * ones
        begins = all(abs(loss - curve.losses[side][1][0]) < SAME for loss, side in zip(first, SIDES, strict=True))
        if counts is not None and (row.alpha is None or begins):
            yield Scored(curve, row.label, losses, row.alpha, counts)


def _end(curve: Curve) -> Losses:
    up, down = (float(curve.losses[side][1][-1]) for side in SIDES)
    return up, down


def scored_averages(curves: Sequence[Curve]) -> list[Scored]:
    """Return the averages that were scored for finished runs, of start and end or over the last part."""
    return [
        scored
        for curve in curves
        if curve.path is not None and curve.finished and set(SIDES) <= curve.losses.keys()
        for merged in read_merged(curve.path, curve.name, _end(curve))
        for scored in _of(merged, curve)
    ]


def _beyond(trajectory: Trajectory, seen: Sequence[Scored]) -> bool:
    lrs = [(s.curve.trajectory.lr, s.curve.trajectory.tokens_per_step) for s in seen]
    areas, falls = [lr.sum() * tokens for lr, tokens in lrs], [fallen(lr) for lr, _ in lrs]
    area, fall = trajectory.lr.sum() * trajectory.tokens_per_step, fallen(trajectory.lr)
    inside = min(areas) / SLACK <= area <= max(areas) * SLACK
    return not (inside and min(falls) - FALLEN <= fall <= max(falls) + FALLEN)


def _place(trajectory: Trajectory, counts: Array) -> Array:
    """Return what bends and shares depend on."""
    lr = trajectory.lr
    area, last = lr.sum() * trajectory.tokens_per_step, lr[-1] / lr.max()
    return np.log([area, last + 1e-3, 1 + 1e-3 - counts.mean()])


@dataclass(frozen=True)
class Known:
    """Bends of lines, or shares of what the law gives: their logs, and the places where they were measured."""

    places: Array
    logs: Array

    @classmethod
    def of(cls, study: Study, kind: str, seen: Sequence[Scored]) -> Known:
        """Return what averages of a kind tell."""
        places, logs = [], []
        groups = [[s] for s in seen]
        if kind == "line":  # one bend for each run
            groups = [[s for s in seen if s.curve.name == name] for name in dict.fromkeys(s.curve.name for s in seen)]
        for group in groups:
            of_law = np.array([_scale(study, kind, s, side) for s in group for side in SIDES])
            found = np.array([_without(s, side) - s.losses[side] for s in group for side in SIDES])
            places.append(_place(group[0].curve.trajectory, group[0].counts if kind == "window" else np.ones(1)))
            logs.append(math.log(max(float(of_law @ found / (of_law @ of_law)), LEAST)))
        return cls(np.stack(places), np.array(logs))

    def at(self, here: Array) -> float:
        """Return the bend or the share at a place, (3,).

        The posterior mean of a Gaussian process over the logs, with a squared exponential kernel.
        """

        def kernel(a: Array) -> Array:
            covariance: Array = SPREAD**2 * np.exp(-0.5 * (((a[..., None, :] - self.places) / WIDTHS) ** 2).sum(-1))
            return covariance

        around = kernel(self.places) + NOISE**2 * np.eye(len(self.places))
        mean = self.logs.mean()
        return math.exp(mean + kernel(here) @ solve(around, self.logs - mean, assume_a="pos"))


def _without(scored: Scored, side: str) -> float:
    """Return the loss where an average lies on a straight line, or for one over a last part, the end's."""
    start, end = (float(scored.curve.losses[side][1][i]) for i in (0, -1))
    return end if scored.alpha is None else (1 - scored.alpha) * start + scored.alpha * end


def _scale(study: Study, kind: str, scored: Scored, side: str) -> float:
    """Return what a bend of 1, or a share of 1, lowers the loss of an average by, in nats."""
    if kind == "line":
        assert scored.alpha is not None
        return scored.alpha * (1 - scored.alpha)
    return _gain(study, scored.curve.trajectory, scored.counts, side)


def _gain(study: Study, trajectory: Trajectory, counts: Array, side: str) -> float:
    """Return what the law says that a virtual schedule gains over the LR itself, in nats."""
    steps = np.array([len(trajectory.lr)])
    virtual = replace(trajectory, lr=trajectory.lr * counts)
    own, other = (study.sides[side].predict(t, steps).loss[0] for t in (trajectory, virtual))
    return max(float(own - other), LEAST)


def averages_of(study: Study) -> Averages:
    """Return what was seen of averages, each kind held out arm by arm."""
    scored = scored_averages(study.fitted) if set(SIDES) <= study.sides.keys() else []
    kinds = {"line": [s for s in scored if s.alpha is not None], "window": [s for s in scored if s.alpha is None]}
    known = {kind: Known.of(study, kind, found) for kind, found in kinds.items() if found}
    return Averages(kinds, known, {kind: list(_held_out(study, kind, found)) for kind, found in kinds.items()})


def _held_out(study: Study, kind: str, found: Sequence[Scored]) -> Iterable[Missed]:
    arms = dict.fromkeys(s.curve.arm for s in found)
    for arm in arms if len(arms) >= FEWEST else ():
        rest = [s for s in found if s.curve.arm != arm]
        known = Known.of(study, kind, rest)
        for one in (s for s in found if s.curve.arm == arm):
            trajectory = one.curve.trajectory
            number = known.at(_place(trajectory, one.counts if kind == "window" else np.ones(1)))
            for side in SIDES:
                predicted = _without(one, side) - number * _scale(study, kind, one, side)
                beyond = _beyond(trajectory, rest)
                yield Missed(one.curve.name, one.label, side, one.losses[side], predicted, beyond)


def last_part(steps: int, window: float) -> Array:
    """Return with which weight each update counts in the average that is a linear decay over the last `window`."""
    left = (steps - np.arange(1, steps + 1) + 0.5) / max(1.0, window * steps)
    counts: Array = np.minimum(left, 1.0)
    return counts


def predicted(
    study: Study, averages: Averages, trajectory: Trajectory, start: Mapping[str, float], end: Mapping[str, Band]
) -> dict[str, dict[str, Band]]:
    """Return the losses of all averages of a training that can be predicted, by label.

    `start` and `end` are the losses before and after it. What the law leaves open of the end is open here too, and
    the error on held-out averages is added to it.
    """
    found = {}
    if averages.predicts("line", trajectory):
        bend, error = averages.known["line"].at(_place(trajectory, np.ones(1))), averages.error("line")
        for a in ALPHAS:
            below = bend * a * (1 - a)
            found[f"alpha={a:g}"] = {s: _moved(end[s], start[s], a, below, error) for s in SIDES}
    if averages.predicts("window", trajectory):
        for window in WINDOWS:
            counts, error = last_part(len(trajectory.lr), window), averages.error("window")
            share = averages.known["window"].at(_place(trajectory, counts))
            gains = {s: share * _gain(study, trajectory, counts, s) for s in SIDES}
            found[f"linear {window:g}"] = {s: _moved(end[s], start[s], 1.0, gains[s], error) for s in SIDES}
    return found


def _moved(end: Band, start: float, alpha: float, below: float, error: float) -> Band:
    """Return the band of an average from that of the end, by where it lies from start to end and how far below."""
    loss = (1 - alpha) * start + alpha * end.loss - below
    own = error * loss
    half = np.hypot(alpha * (end.high - end.loss), norm.ppf((1 + LEVEL) / 2) * own)
    return Band(loss, loss - half, loss + half, np.hypot(alpha * end.error, own))
