"""Hold-out: a law is judged by the runs that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewarm.errors import UserError, nearest
from rewarm.forecast.bands import Miss
from rewarm.forecast.coverage import Seen as Covered
from rewarm.forecast.coverage import unlike
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import Units, features
from rewarm.forecast.fit import FLOOR, Fit, fit, points_of
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.laws import SAME_SIZE, distinct_sizes, form_of
from rewarm.forecast.process import NEW_RUN, Process, Seen, part_of, places


@dataclass(frozen=True)
class Errors:
    """How far predicted losses are from those that a run measured on one validation set. Shares, not percent."""

    run: str
    side: str
    steps: Steps
    measured: Array
    predicted: Array
    warmup_steps: int
    miss: Miss
    """The errors after the warm-up beside what the fit left open."""
    beyond: tuple[str, ...] = ()
    """In what the run lies outside those that were fitted."""
    naive: float | None = None
    """Error of the final loss if it were that of the fitted run with the nearest max LR, at the same tokens."""
    withheld: str | None = None
    """Why no number would be given for the run, were it asked for."""

    @property
    def relative(self) -> Array:
        """Return the errors as shares of the measured losses."""
        errors: Array = self.predicted / self.measured - 1
        return errors

    @property
    def final(self) -> float:
        """Return the error of the last loss."""
        return float(self.relative[-1])

    def _mean(self, where: NDArray[np.bool_]) -> float | None:
        return float(np.abs(self.relative[where]).mean()) if where.any() else None

    @property
    def curve(self) -> float | None:
        """Return the mean absolute error after the warm-up."""
        return self._mean(self.steps > self.warmup_steps)

    @property
    def warmup(self) -> float | None:
        """Return the mean absolute error up to the end of the warm-up, or None where it has none."""
        return self._mean((self.steps > 0) & (self.steps <= self.warmup_steps))


def errors_of(fitted: Fit, curve: Curve, side: str) -> Errors:
    """Return the errors of a fit on one run."""
    steps, measured = curve.losses[side]
    predicted, moves = fitted.predict_moves(features(curve.trajectory, steps, fitted.units))
    after = (steps > curve.trajectory.warmup_steps) | (steps == steps[-1])
    log_errors = np.log(np.maximum(predicted, FLOOR) / measured)
    miss = Miss(log_errors[after], moves[after], fitted.openness)
    return Errors(curve.name, side, steps, measured, predicted, curve.trajectory.warmup_steps, miss)


def largest_but_one_arm(curves: Sequence[Curve]) -> list[int]:
    """Return which runs to hold out to see how well a law moves to a larger model.

    Those of the largest model with several arms, but for the first arm that was finished: its pilot. None where no
    model but the smallest has several.
    """
    sizes = distinct_sizes(curve.trajectory.parameters or np.nan for curve in curves)
    for size in range(len(sizes) - 1, 0, -1):
        mine = [i for i, curve in enumerate(curves) if size_index(curve, sizes) == size]
        pilot = next((curves[i].arm for i in mine if curves[i].finished), "")
        held = [i for i in mine if curves[i].arm != pilot]
        if pilot and held:
            return held
    return []


def process_of(errors: Sequence[Errors], curves: Sequence[Curve], groups: Sequence[Sequence[int]]) -> Process | None:
    """Return the Gaussian process over what a law missed of arms held out in turn; None where none could be."""
    numbers = {curve.name: i for i, curve in enumerate(curves)}
    parts = []
    for e in errors:
        number = numbers[e.run]
        parts.append(part_of(curves[number].trajectory, e.steps, e.measured, e.predicted, number, len(curves)))
    return Process.of(Seen.of(parts), [], groups) if parts else None


def with_process(errors: Errors, process: Process | None, trajectory: Trajectory) -> Errors:
    """Return the errors that are left when a Gaussian process corrects what the law predicted."""
    if process is None:
        return errors
    mean, _ = process.at(places(trajectory, errors.steps), np.full(len(errors.steps), NEW_RUN))
    return replace(errors, predicted=errors.predicted * np.exp(mean))


def inside(errors: Sequence[Errors]) -> list[Errors]:
    """Return the errors on runs inside what was fitted; all of them where none is.

    The arm with the highest LR, held out, is an extrapolation: no measure of what lies between the arms.
    """
    return [e for e in errors if not e.beyond] or list(errors)


def moved(curve: Curve, fitted: Sequence[Curve], side: str) -> float | None:
    """Return the error of moving the next smaller model's final losses to those that this one's other runs had.

    The mean over these; None where there is no smaller model or no other run.
    """

    def end(of: Curve) -> float:
        return float(of.losses[side][1][-1])

    def twin(of: Curve) -> Curve:
        return min(smaller, key=lambda other: unlike(other.trajectory, of.trajectory))

    sizes = distinct_sizes([c.trajectory.parameters or np.nan for c in (*fitted, curve)])
    mine = size_index(curve, sizes)
    pilots = [c for c in fitted if size_index(c, sizes) == mine]
    smaller = [c for c in fitted if size_index(c, sizes) == mine - 1]
    if not pilots or not smaller:
        return None
    gained = end(twin(curve)) - float(np.mean([end(twin(pilot)) for pilot in pilots]))
    return float((np.mean([end(pilot) for pilot in pilots]) + gained) / end(curve) - 1)


def size_index(curve: Curve, sizes: Sequence[float]) -> int:
    """Return which of the sizes a run's model has; 0 where all have one size."""
    return int(np.searchsorted(sizes, (curve.trajectory.parameters or 0.0) * (1 - SAME_SIZE))) if sizes else 0


def naive(curve: Curve, fitted: Sequence[Curve], side: str) -> float:
    """Return the error of taking a run's final loss from runs that were made, without any law.

    From the run with the nearest max LR; or `moved` from the next smaller model.
    """
    if (error := moved(curve, fitted, side)) is not None:
        return error

    def distance(other: Curve) -> float:
        return abs(float(np.log(other.trajectory.lr.max() / curve.trajectory.lr.max())))

    nearest = min(fitted, key=distance)
    steps, losses = nearest.losses[side]
    tokens = curve.losses[side][0][-1] * curve.trajectory.tokens_per_step
    guess = np.interp(tokens, steps * nearest.trajectory.tokens_per_step, losses)
    return float(guess / curve.losses[side][1][-1] - 1)


def r2(errors: Sequence[Errors]) -> float:
    """Return the share of the variance of measured losses, over all runs together, that the predictions explain."""
    measured = np.concatenate([e.measured for e in errors])
    wrong = np.concatenate([e.predicted - e.measured for e in errors])
    return float(1 - (wrong**2).sum() / ((measured - measured.mean()) ** 2).sum())


def mae(errors: Sequence[Errors]) -> float:
    """Return the mean absolute error, in nats a token, over all runs together."""
    return float(np.abs(np.concatenate([e.predicted - e.measured for e in errors])).mean())


def pick(curves: Sequence[Curve], names: Sequence[str]) -> list[int]:
    """Return which curves the `names` mean. Raises `UserError` for a name that none of them has."""
    known = [curve.name for curve in curves]
    for name in names:
        if name not in known:
            raise UserError(f"holdout={name}: no such run{nearest(name, known)} (runs: {', '.join(known)})")
    return [i for i, name in enumerate(known) if name in names]


def splits(curves: Sequence[Curve]) -> list[list[int]]:
    """Return which curves to hold out together, for each arm in turn; none where there is only one arm.

    The seeds of an arm go together: one of them would give away the others. The only arm of a model of its own size
    is never held out: nothing else tells where its losses begin.
    """
    sizes = distinct_sizes([curve.trajectory.parameters or np.nan for curve in curves])
    of_size = [size_index(curve, sizes) for curve in curves]
    arms = list(dict.fromkeys((curve.arm, size) for curve, size in zip(curves, of_size, strict=True)))
    counts = [size for _, size in arms]
    found = [
        [i for i, curve in enumerate(curves) if (curve.arm, of_size[i]) == arm]
        for arm in arms
        if counts.count(arm[1]) > 1
    ]
    return found if len(arms) > 1 else []


def hold_out(
    law: str,
    replay_term: str | None,
    curves: Sequence[Curve],
    side: str,
    units: Units,
    seed: int,
    groups: Sequence[Sequence[int]],
    memory: float | None = None,
) -> list[Errors]:
    """Return the errors on the runs of each of `groups`, predicted by fits to all the others."""
    found = []
    for group in groups:
        rest = [curve for i, curve in enumerate(curves) if i not in group and side in curve.losses]
        held = [curves[i] for i in group if side in curves[i].losses]
        if rest and held:
            points = points_of(rest, side, units)
            form = form_of(law, points.features, replay_term, memory)
            best = fit(form, points, units, np.random.default_rng(seed))
            seen = Covered.of(rest)
            for curve in held:
                asked = (curve.trajectory, curve.last_step)
                found.append(
                    replace(
                        errors_of(best, curve, side),
                        beyond=seen.beyond(*asked),
                        withheld=seen.withheld(*asked),
                        naive=naive(curve, rest, side),
                    )
                )
    return found
