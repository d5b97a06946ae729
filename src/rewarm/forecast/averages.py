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
from rewarm.forecast.coverage import FALLEN, SLACK
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import features
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
    place: Array
    """What its bend or its share depends on, (3,)."""
    scale: dict[str, float]
    """What a bend of 1, or a share of 1, would lower its losses by, in nats."""

    def without(self, side: str) -> float:
        """Return the loss where it lies on a straight line, or for one over a last part, the end's."""
        start, end = (float(self.curve.losses[side][1][i]) for i in (0, -1))
        return end if self.alpha is None else (1 - self.alpha) * start + self.alpha * end


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
class Known:
    """Bends of lines, or shares of what the law gives: their logs, and the places where they were measured."""

    places: Array
    logs: Array

    @classmethod
    def of(cls, seen: Sequence[Scored]) -> Known:
        """Return what averages of a kind tell. All at one place, as those on one line are, tell it together."""
        groups: dict[bytes, list[Scored]] = {}
        for scored in seen:
            groups.setdefault(scored.place.tobytes(), []).append(scored)
        logs = []
        for group in groups.values():
            scale = np.array([s.scale[side] for s in group for side in SIDES])
            found = np.array([s.without(side) - s.losses[side] for s in group for side in SIDES])
            logs.append(math.log(max(float(scale @ found / (scale @ scale)), LEAST)))
        return cls(np.stack([group[0].place for group in groups.values()]), np.array(logs))

    def encloses(self, place: Array) -> bool:
        """Return whether a place lies among those measured: by the LR's area, and by how far it fell."""
        areas, ends = self.places[:, 0], np.exp(self.places[:, 1])
        within = areas.min() - math.log(SLACK) <= place[0] <= areas.max() + math.log(SLACK)
        return bool(within and ends.min() - FALLEN <= math.exp(place[1]) <= ends.max() + FALLEN)

    def at(self, place: Array) -> float:
        """Return the bend or the share at a place, (3,).

        The posterior mean of a Gaussian process over the logs, with a squared exponential kernel.
        """

        def kernel(a: Array) -> Array:
            covariance: Array = SPREAD**2 * np.exp(-0.5 * (((a[..., None, :] - self.places) / WIDTHS) ** 2).sum(-1))
            return covariance

        around = kernel(self.places) + NOISE**2 * np.eye(len(self.places))
        mean = self.logs.mean()
        return math.exp(mean + kernel(place) @ solve(around, self.logs - mean, assume_a="pos"))


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
        return self.error(kind) <= POOR_FINAL and self.known[kind].encloses(_place(trajectory))


def _place(trajectory: Trajectory, counts: Array | None = None) -> Array:
    """Return what bends depend on, or where updates have `counts` in an average over a last part, what shares do."""
    lr = trajectory.lr
    area, last = lr.sum() * trajectory.tokens_per_step, lr[-1] / lr.max()
    return np.log([area, last + 1e-3, 1e-3 + (0.0 if counts is None else 1 - counts.mean())])


def _gains(study: Study, trajectory: Trajectory, counts: Array, ends: Mapping[str, float]) -> dict[str, float]:
    """Return what the law says that a virtual schedule gains over the LR itself, which it ends so with, in nats."""
    points = features(replace(trajectory, lr=trajectory.lr * counts), np.array([len(trajectory.lr)]), study.units)
    return {s: max(ends[s] - float(study.sides[s].fit.predict_moves(points)[0][0]), LEAST) for s in SIDES}


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


def _of(study: Study, merged: Merged, curve: Curve) -> Iterable[Scored]:
    t = curve.trajectory
    # A line may begin at another model than the run did.
    starts = [float(curve.losses[side][1][0]) for side in SIDES]
    begins = all(abs(a - b) < SAME for a, b in zip(merged.rows[0].losses, starts, strict=True))
    for row in (row for row in merged.rows if not row.is_end):
        losses = dict(zip(SIDES, row.losses, strict=True))
        if row.alpha is not None and begins:
            scale = dict.fromkeys(SIDES, row.alpha * (1 - row.alpha))
            yield Scored(curve, row.label, losses, row.alpha, _place(t), scale)
        elif row.alpha is None and (counts := _counts(row, curve)) is not None:
            points = np.array([len(t.lr)])
            ends = {side: float(study.sides[side].predict(t, points).loss[0]) for side in SIDES}
            scale = _gains(study, t, counts, ends)
            yield Scored(curve, row.label, losses, None, _place(t, counts), scale)


def scored_averages(study: Study) -> list[Scored]:
    """Return the averages that were scored for finished runs, of start and end or over the last part."""
    return [
        scored
        for curve in study.fitted
        if curve.path is not None and curve.finished and set(SIDES) <= curve.losses.keys()
        for merged in read_merged(curve.path, curve.name, _end(curve))
        for scored in _of(study, merged, curve)
    ]


def _end(curve: Curve) -> Losses:
    up, down = (float(curve.losses[side][1][-1]) for side in SIDES)
    return up, down


def averages_of(study: Study) -> Averages:
    """Return what was seen of averages, each kind held out arm by arm."""
    scored = scored_averages(study) if set(SIDES) <= study.sides.keys() else []
    kinds = {"line": [s for s in scored if s.alpha is not None], "window": [s for s in scored if s.alpha is None]}
    known = {kind: Known.of(found) for kind, found in kinds.items() if found}
    return Averages(kinds, known, {kind: list(_held_out(found)) for kind, found in kinds.items()})


def _held_out(found: Sequence[Scored]) -> Iterable[Missed]:
    arms = dict.fromkeys(s.curve.arm for s in found)
    for arm in arms if len(arms) >= FEWEST else ():
        known = Known.of([s for s in found if s.curve.arm != arm])
        for one in (s for s in found if s.curve.arm == arm):
            number, beyond = known.at(one.place), not known.encloses(one.place)
            for side in SIDES:
                predicted = one.without(side) - number * one.scale[side]
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
        bend, error = averages.known["line"].at(_place(trajectory)), averages.error("line")
        for a in ALPHAS:
            found[f"alpha={a:g}"] = {s: _moved(end[s], start[s], a, bend * a * (1 - a), error) for s in SIDES}
    if averages.predicts("window", trajectory):
        ends, error = {side: float(band.loss[-1]) for side, band in end.items()}, averages.error("window")
        for window in WINDOWS:
            counts = last_part(len(trajectory.lr), window)
            share, gains = (
                averages.known["window"].at(_place(trajectory, counts)),
                _gains(study, trajectory, counts, ends),
            )
            found[f"linear {window:g}"] = {s: _moved(end[s], start[s], 1.0, share * gains[s], error) for s in SIDES}
    return found


def _moved(end: Band, start: float, alpha: float, below: float, error: float) -> Band:
    """Return the band of an average from that of the end, by where it lies from start to end and how far below."""
    loss = (1 - alpha) * start + alpha * end.loss - below
    own = error * loss
    half = np.hypot(alpha * (end.high - end.loss), norm.ppf((1 + LEVEL) / 2) * own)
    return Band(loss, loss - half, loss + half, np.hypot(alpha * end.error, own))
