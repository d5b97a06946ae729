"""Hold-out: a law is judged by the runs that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewarm.errors import UserError, nearest
from rewarm.forecast.bands import Miss
from rewarm.forecast.coverage import Seen
from rewarm.forecast.curves import Curve
from rewarm.forecast.features import Units, features
from rewarm.forecast.fit import FLOOR, Fit, fit, points_of
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.laws import form_of


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


def inside(errors: Sequence[Errors]) -> list[Errors]:
    """Return the errors on runs inside what was fitted; all of them where none is.

    The arm with the highest LR, held out, is an extrapolation: no measure of what lies between the arms.
    """
    return [e for e in errors if not e.beyond] or list(errors)


def naive(curve: Curve, fitted: Sequence[Curve], side: str) -> float:
    """Return the error of taking a run's final loss from the fitted run with the nearest max LR, without any law."""

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

    The seeds of an arm go together: one of them would give away the others.
    """
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    if len(arms) < 2:
        return []
    return [[i for i, curve in enumerate(curves) if curve.arm == arm] for arm in arms]


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
            seen = Seen.of(rest)
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
