"""How wide a band is: what a fit leaves open, scaled so that held-out runs are missed by as much as it says.

Every run counts as one look at the law, off by an error of its own, as large for all runs. The variance of a log loss
that is predicted for another run is then

    g' (M / error^2 + P)^-1 g  +  error^2  +  jitter^2

with g the slopes of the log loss by the parameters, M the mean of g g' along a run, summed over the runs, P what was
known of the parameters before, and jitter the scatter of logged losses about their curve. `error` is the one for
which held-out runs are missed, on average, by what this says. It holds what no count of points could tell: how far
the law is from the truth, what a seed moves, how errors go together along a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

from rewarm.forecast.history import Array

LEVEL = 0.9
"""Probability that intervals and bands are meant to hold."""
LEAST, MOST = 1e-6, 0.5
"""Smallest and largest error of a run, as a share, that is looked for."""
PRIOR_COEFFICIENT = 10.0
"""Standard deviation, in nats, of what is known of a coefficient before anything was measured."""
PRIOR_SHAPE = 0.3
"""The same of the log of a shape, as a share of the range between its bounds."""
FEWEST = 5
"""Points of a curve from which on its jitter can be told."""


@dataclass(frozen=True)
class Openness:
    """The directions in which the parameters of a fit are open, p of p; in each, prior knowledge is as much as 1."""

    directions: Array
    """(p, p) one in each column."""
    known: Array
    """(p,) what the runs tell of each, were the error of a run 1."""

    @classmethod
    def of(cls, information: Array, prior: Array) -> Openness:
        """Return the directions for M, (p, p), and the standard deviation of each parameter before, (p,)."""
        known, directions = eigh(information, np.diag(1 / prior**2))
        return cls(directions, np.maximum(known, 0.0))

    def widths(self, error: float) -> Array:
        """Return by how much the fit is open in each direction, (p,), where runs have this error."""
        widths: Array = error / np.sqrt(self.known + error**2)
        return widths

    def moves(self, slopes: Array) -> Array:
        """Return by how much log losses with these slopes, (n, p), move along each direction, (n, p)."""
        return slopes @ self.directions


@dataclass(frozen=True)
class Miss:
    """By how much a fit missed a run that it had not seen, and how open it was there. All along the curve."""

    log_errors: Array
    """(n,)"""
    moves: Array
    """(n, p)"""
    openness: Openness

    def squared(self, error: float, jitter: float) -> float:
        """Return the mean square of the miss in standard deviations, half of it that of the final loss."""
        variance = self.moves**2 @ self.openness.widths(error) ** 2 + error**2 + jitter**2
        squares = self.log_errors**2 / variance
        return float(squares.mean() + squares[-1]) / 2


def error_of_a_run(misses: Sequence[Miss], jitter: float) -> float:
    """Return the error of a run, a share, for which the misses are on average as large as they should be.

    It is not below what the jitter alone leaves of the mean along a run.
    """

    def excess(log_error: float) -> float:
        return float(np.mean([miss.squared(float(np.exp(log_error)), jitter) for miss in misses])) - 1

    points = float(np.mean([len(miss.log_errors) for miss in misses]))
    low, high = np.log([max(LEAST, jitter / np.sqrt(points)), MOST])
    if excess(low) <= 0:
        return float(np.exp(low))
    return MOST if excess(high) >= 0 else float(np.exp(brentq(excess, low, high, xtol=1e-3)))


def jitter_of(log_errors: Sequence[Array]) -> float:
    """Return how far logged losses scatter about smooth curves, a share: how each stands between its neighbours."""
    bends = [np.diff(errors, 2) for errors in log_errors if len(errors) >= FEWEST]
    return float(np.median(np.abs(np.concatenate(bends))) / 0.6745 / np.sqrt(6)) if bends else 0.0


@dataclass(frozen=True)
class Scale:
    """How far off runs are, and how well that is known."""

    error: float
    """Error of a run, a share of its loss."""
    jitter: float
    """Scatter of logged losses about their curve, a share."""
    freedom: int
    """Degrees of freedom: arms that were held out, less one."""

    @classmethod
    def of(cls, misses: Sequence[Miss], fitted: Sequence[Miss], arms: int) -> Scale:
        """Return the scale that the `misses` of so many held-out arms tell, and the `fitted` runs' jitter."""
        jitter = jitter_of([miss.log_errors for miss in fitted])
        return cls(error_of_a_run(misses or fitted, jitter), jitter, max(arms - 1, 1))

    def deviation(self, openness: Openness, moves: Array) -> Array:
        """Return the standard deviation of log losses that move so, (n, p); without jitter."""
        deviation: Array = np.sqrt(moves**2 @ openness.widths(self.error) ** 2 + self.error**2)
        return deviation

    def half(self, deviation: Array) -> Array:
        """Return half the width of an interval about what has such a standard deviation; few arms tell the error."""
        half: Array = student.ppf((1 + LEVEL) / 2, self.freedom) * deviation
        return half

    def half_band(self, deviation: Array) -> Array:
        """Return half the width of a band of log losses: the interval, and the jitter, which many points tell."""
        half: Array = np.hypot(self.half(deviation), norm.ppf((1 + LEVEL) / 2) * self.jitter)
        return half

    def draws(self, openness: Openness, moves: Array, count: int, rng: np.random.Generator) -> Array:
        """Return draws of by how much the log losses at the ends of n runs differ from the fit's, (count, n).

        What the fit leaves open moves all runs together; each has an error of its own. Jitter is left out.
        """
        together = (rng.standard_normal((count, moves.shape[1])) * openness.widths(self.error)) @ moves.T
        own = self.error * rng.standard_normal((count, len(moves)))
        student_scale = np.sqrt(self.freedom / rng.chisquare(self.freedom, count))
        draws: Array = np.clip(student_scale[:, None] * (together + own), -1.0, 1.0)
        return draws
