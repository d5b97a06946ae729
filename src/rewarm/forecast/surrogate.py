"""What a sweep's runs will come to: the law, and a Gaussian process over what it misses.

A law has few parameters, and misses some recipes by more than others. By how much, finished arms tell: each is
predicted by a fit to all the others, along its whole curve. Runs that are under way are predicted by the fit to all
finished ones, as far as they have come. Both kinds of errors are alike, the log losses of runs that the fit has not
seen, and a Gaussian process over them says what to add to the law, and how sure that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve
from scipy.optimize import minimize

from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import Units, features, units_of
from rewarm.forecast.fit import FLOOR, Fit, fit, points_of
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.holdout import splits
from rewarm.forecast.laws import form_of
from rewarm.points import spread_out

LAW, REPLAY_TERM = "cpt", "hyperbolic"
FEWEST_ARMS = 12
"""Finished arms from which on they tell how far the law errs, which has eleven parameters of its own."""
POINTS = 600
"""The most points that the process looks at; a solution takes the cube of them."""
OF_A_RUN = 12
"""The most points of a run."""
LENGTHS = (1.0, 0.7, 0.5, 1.0, 0.7, 0.7)
"""Over which errors stay alike: the scales of the columns of `places`."""
PRIOR = np.log([*LENGTHS, 0.02, 0.01, 0.5, 0.003])
"""Logs of what is expected of the process: lengths, the errors' size, a run's own, how long that lasts, noise."""
OPEN = 0.5
"""Standard deviation of each of these logs."""

Runs = NDArray[np.int64]
Part = tuple[Array, int, Array]
"""Places of a run, its number, and its errors there."""
Ends = tuple[dict[str, float], dict[str, float]]


def places(trajectory: Trajectory, steps: Steps) -> Array:
    """Return where a training is after each of `steps` (from 1), (n, 6).

    The log of the area under its LR; its LR as a share of the highest so far; the log of that share over the last
    fifth of its updates, which tells a cosine from a straight line; the log of the highest LR; its replay; and how
    much of it is done. Little replay does much: it counts as log(1 + replay / 5 %).
    """
    lr = trajectory.lr + np.finfo(float).tiny
    summed = np.concatenate([[0.0], np.cumsum(lr)])
    highest = np.maximum.accumulate(lr)[steps - 1]
    fifth = np.maximum(steps // 5, 1)
    columns = (
        np.log(summed[steps] * trajectory.tokens_per_step),
        lr[steps - 1] / highest,
        np.log((summed[steps] - summed[steps - fifth]) / fifth / highest),
        np.log(highest),
        np.full(len(steps), np.log1p(trajectory.replay / 0.05)),
        steps / len(lr),
    )
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Seen:
    """Errors of runs that the fit had not seen."""

    places: Array
    """(n, 6)"""
    runs: Runs
    """(n,) which run each belongs to."""
    errors: Array
    """(n,) log of the measured loss over the law's."""

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Seen:
        """Return the errors of several runs."""
        at, numbers, errors = zip(*parts, strict=True)
        runs = [np.full(len(e), number) for number, e in zip(numbers, errors, strict=True)]
        return cls(np.concatenate(at), np.concatenate(runs), np.concatenate(errors))

    def and_of(self, parts: Sequence[Part]) -> Seen:
        """Return these errors and those of more runs."""
        if not parts:
            return self
        more = Seen.of(parts)
        return Seen(*(np.concatenate((getattr(self, f.name), getattr(more, f.name))) for f in fields(Seen)))


def _kernel(theta: Array, a: Array, of_a: Runs, b: Array, of_b: Runs) -> Array:
    """Return the covariance of errors at places `a` and `b`: what recipes share, and what a run has of its own."""
    *lengths, size, of_a_run, lasts, _ = np.exp(theta)
    shared = size**2 * np.exp(-0.5 * (((a[:, None] - b[None]) / lengths) ** 2).sum(-1))
    own = of_a_run**2 * np.exp(-np.abs(a[:, None, -1] - b[None, :, -1]) / lasts)
    covariance: Array = shared + (of_a[:, None] == of_b) * own
    return covariance


@dataclass(frozen=True)
class Process:
    """A Gaussian process over the errors of one validation set."""

    seen: Seen
    theta: Array
    scale: float
    """Factor of its standard deviations, at least 1: held-out arms were missed by so many of them."""
    freedom: int
    """Degrees of freedom of `scale`: arms that were held out, less one."""

    @classmethod
    def of(cls, finished: Seen, running: Sequence[Part], arms: Sequence[Sequence[int]]) -> Process:
        """Return the process that the errors of finished arms make likeliest, given those of `running` runs too.

        `arms` are the numbers of the runs of each finished arm.
        """

        def surprise(theta: Array) -> float:
            """Return the negative log of the posterior density of the process's parameters."""
            try:
                factor = cho_factor(_around(theta, finished), lower=True)
            except np.linalg.LinAlgError:
                return 1e9
            fits = 0.5 * finished.errors @ cho_solve(factor, finished.errors)
            return float(fits + np.log(np.diag(factor[0])).sum() + 0.5 * (((theta - PRIOR) / OPEN) ** 2).sum())

        theta = minimize(surprise, PRIOR, method="L-BFGS-B", options={"maxiter": 30}).x
        inverse = np.linalg.inv(_around(theta, finished))
        pull, misses = inverse @ finished.errors, []
        for arm in arms:
            mine = np.flatnonzero(np.isin(finished.runs, arm))
            if len(mine) == 0:
                continue
            spread = np.linalg.inv(inverse[np.ix_(mine, mine)])  # covariance of these errors given all others
            ends = np.array([np.flatnonzero(finished.runs[mine] == run)[-1] for run in arm if run in finished.runs])
            misses.append(float(((spread @ pull[mine])[ends] ** 2 / np.diag(spread)[ends]).mean()))
        seen = finished.and_of(running)
        return cls(seen, theta, max(1.0, float(np.sqrt(np.mean(misses or [1.0])))), max(len(misses) - 1, 1))

    def at(self, at: Array, runs: Runs) -> tuple[Array, Array]:
        """Return the mean of the errors at some places, (n,), and their covariance, (n, n), noise and scale in it."""
        between = _kernel(self.theta, at, runs, self.seen.places, self.seen.runs)
        solved = solve(_around(self.theta, self.seen), between.T, assume_a="pos")
        noise = np.exp(2 * self.theta[-1]) * np.eye(len(at))
        covariance = _kernel(self.theta, at, runs, at, runs) - between @ solved + noise
        return solved.T @ self.seen.errors, self.scale**2 * covariance


def _around(theta: Array, seen: Seen) -> Array:
    noise = np.exp(2 * theta[-1]) * np.eye(len(seen.errors))
    around: Array = _kernel(theta, seen.places, seen.runs, seen.places, seen.runs) + noise
    return around


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
    """Return the errors of a run after its warm-up, at some of its points where there are many."""
    steps, losses = curve.losses[side]
    after = np.flatnonzero(steps > max(curve.trajectory.warmup_steps, 1))
    picked = after[spread_out(len(after), max(2, min(OF_A_RUN, POINTS // len(numbers))))] if len(after) else after
    predicted = law.predict(features(curve.trajectory, steps[picked], law.units))
    errors = np.log(losses[picked] / np.maximum(predicted, FLOOR))
    return places(curve.trajectory, steps[picked]), numbers[curve.name], errors
