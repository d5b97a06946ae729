"""A Gaussian process over what a law misses: log losses of runs that the fit has not seen, over the law's.

Recipes that are alike are missed alike, and a run that is missed goes on being missed. How alike, and by how much, is
what the errors of held-out runs make likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve
from scipy.optimize import minimize

from rewarm.forecast.curves import Trajectory
from rewarm.forecast.fit import FLOOR
from rewarm.forecast.history import Array, Steps
from rewarm.points import spread_out

POINTS = 600
"""The most points that the process looks at; a solution takes the cube of them."""
NEW_RUN = -1
"""Number of a run of which nothing was seen."""
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


def places(trajectory: Trajectory, steps: Steps) -> Array:
    """Return where a training is after each of `steps`, (n, 6); before the first it is where it is after it.

    The log of the area under its LR; its LR as a share of the highest so far; the log of that share over the last
    fifth of its updates, which tells a cosine from a straight line; the log of the highest LR; its replay; and how
    much of it is done. Little replay does much: it counts as log(1 + replay / 5 %).
    """
    steps = np.maximum(steps, 1)
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


def part_of(trajectory: Trajectory, steps: Steps, losses: Array, predicted: Array, number: int, runs: int) -> Part:
    """Return the errors of one of `runs` after its warm-up, at some of its points where there are many."""
    after = np.flatnonzero(steps > max(trajectory.warmup_steps, 1))
    picked = after[spread_out(len(after), max(2, min(OF_A_RUN, POINTS // runs)))] if len(after) else after
    errors = np.log(losses[picked] / np.maximum(predicted[picked], FLOOR))
    return places(trajectory, steps[picked]), number, errors
