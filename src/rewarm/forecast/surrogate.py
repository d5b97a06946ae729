"""What a sweep's runs will come to: the law, and a Gaussian process over what it misses.

A law has few parameters, and misses some recipes by more than others. By how much, finished arms tell: each is
predicted by a fit to all the others, along its whole curve. Runs that are under way are predicted by the fit to all
finished ones, as far as they have come. Both kinds of errors are alike, the log losses of runs that the fit has not
seen, and a Gaussian process over them says what to add to the law, and how sure that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import Units, features, units_of
from rewarm.forecast.fit import FLOOR, Fit, fit, points_of
from rewarm.forecast.history import Array
from rewarm.forecast.holdout import splits
from rewarm.forecast.laws import form_of
from rewarm.forecast.process import Part, Process, Seen, part_of, places

LAW, REPLAY_TERM = "cpt", "hyperbolic"
FEWEST_ARMS = 12
"""Finished arms from which on they tell how far the law errs, which has eleven parameters of its own."""
Ends = tuple[dict[str, float], dict[str, float]]


@dataclass(frozen=True)
class Surrogate:
    """For each validation set the law fitted to all finished runs, and the process over what it misses."""

    curves: tuple[Curve, ...]
    units: Units
    sides: dict[str, tuple[Fit, Process]]

    @classmethod
    def of(
        cls, curves: Sequence[Curve], sides: Sequence[str], seed: int = 0, fewest: int = FEWEST_ARMS
    ) -> Surrogate | None:
        """Return what all curves tell together; None while fewer than `fewest` arms are finished."""
        finished = [curve for curve in curves if curve.finished]
        groups = splits(finished)
        if len(groups) < fewest:
            return None
        units = units_of([curve.trajectory for curve in curves])
        numbers = {curve.name: i for i, curve in enumerate(curves)}
        arms = [[numbers[finished[i].name] for i in group] for group in groups]
        found = {}
        for side in sides:
            law = _law(finished, side, units, seed)
            held = []
            for group in groups:
                rest = [curve for i, curve in enumerate(finished) if i not in group]
                other = _law(rest, side, units, seed, near=law)
                held += [_errors(other, finished[i], side, numbers) for i in group]
            under_way = [_errors(law, curve, side, numbers) for curve in curves if not curve.finished]
            found[side] = (law, Process.of(Seen.of(held), under_way, arms))
        return cls(tuple(curves), units, found)

    def finals(self, recipes: Sequence[tuple[Trajectory, str | None]], side: str) -> tuple[Array, Array]:
        """Return mean, (n,), and covariance, (n, n), of the logs of the final losses of trainings.

        With each comes the name of the curve that is its beginning, where it has begun.
        """
        law, process = self.sides[side]
        numbers = {curve.name: i for i, curve in enumerate(self.curves)}
        runs = np.array([numbers.get(name or "", len(numbers) + i) for i, (_, name) in enumerate(recipes)])
        ends = [(t, np.array([len(t.lr)])) for t, _ in recipes]
        mean, covariance = process.at(np.concatenate([places(t, end) for t, end in ends]), runs)
        by_law = [law.predict(features(t, end, self.units))[0] for t, end in ends]
        return np.log(np.maximum(by_law, FLOOR)) + mean, covariance

    def predicted(self, recipes: Sequence[tuple[Trajectory, str | None]]) -> list[Ends]:
        """Return the final losses of trainings, and the standard deviation of each, both by side, in nats a token."""
        found: list[Ends] = [({}, {}) for _ in recipes]
        for side in self.sides:
            mean, covariance = self.finals(recipes, side)
            for (losses, errors), loss, error in zip(found, np.exp(mean), np.sqrt(np.diag(covariance)), strict=True):
                losses[side], errors[side] = float(loss), float(loss * error)
        return found

    def draws(self, recipes: Sequence[tuple[Trajectory, str | None]], count: int, rng: np.random.Generator) -> Array:
        """Return `count` joint draws of the final losses of trainings, (count, n, sides), in nats a token."""
        drawn = []
        for side, (_, process) in self.sides.items():
            mean, covariance = self.finals(recipes, side)
            normal = rng.multivariate_normal(np.zeros(len(mean)), covariance, count, method="eigh")
            student = np.sqrt(process.freedom / rng.chisquare(process.freedom, count))[:, None]
            drawn.append(np.exp(mean + np.clip(student * normal, -1.0, 1.0)))
        return np.stack(drawn, axis=-1)


def _law(curves: Sequence[Curve], side: str, units: Units, seed: int, near: Fit | None = None) -> Fit:
    points = points_of(curves, side, units)
    form = form_of(LAW, points.features, REPLAY_TERM)
    start = near.theta if near and near.form == form else None
    return fit(form, points, units, np.random.default_rng(seed), start)


def _errors(law: Fit, curve: Curve, side: str, numbers: Mapping[str, int]) -> Part:
    steps, losses = curve.losses[side]
    predicted = law.predict(features(curve.trajectory, steps, law.units))
    return part_of(curve.trajectory, steps, losses, predicted, numbers[curve.name], len(numbers))
