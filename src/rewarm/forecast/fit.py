"""Fitting a law: Huber loss on log loss, from many starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

from rewarm.forecast.bands import PRIOR_COEFFICIENT, PRIOR_SHAPE, Openness
from rewarm.forecast.curves import Curve
from rewarm.forecast.features import Features, Units, features, stack
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.laws import Form, Law, Term, bounds
from rewarm.points import spread_out

HUBER = 1e-3
"""Log-loss error from which on it counts linearly, as in the papers."""
N_SCREENED = 160
"""How many random choices of the shapes are tried, each with the coefficients that fit best."""
N_POLISHED = 6
"""How many of the best of these are improved by the optimizer for a short while."""
POLISH_EVALUATIONS = 25
"""How often the optimizer may evaluate the law for each of them."""
FINAL_EVALUATIONS = 250
"""How often it may evaluate the law when it improves the best of them until it converges."""
MAX_POINTS = 120
"""The most points of one curve that a fit looks at."""
TETHER = 0.02
"""Pull of each shape's log to the middle of its bounds, and of each coefficient to 0 as a share of the loss.

In units of `HUBER` for each point: it decides only what the data leave open, such as two huge terms that cancel.
"""
SIZE_PRIOR = 0.05
"""Change of the log of g, the power of the size, that is held for as unlikely as a curve that is off by `HUBER`."""
FLOOR = 1e-3
"""Least loss that a law may predict while it is being fitted, so that a log can be taken."""


@dataclass(frozen=True)
class Points:
    """Measured losses of one validation set, of several curves, and what the laws need at them."""

    features: Features
    loss: Array
    curve: Array
    """(n,) index of the curve that a point belongs to."""
    weight: Array
    """(n,) mean 1: a curve weighs the same however densely it was evaluated, and so does a stretch of it."""


def points_of(curves: Sequence[Curve], side: str, units: Units) -> Points:
    """Return the points of all curves on one validation set."""
    parts, losses, owners, weights = [], [], [], []
    for i, curve in enumerate(curves):
        steps, loss = curve.losses[side]
        picked = spread_out(len(steps), MAX_POINTS)
        steps, loss = steps[picked], loss[picked]
        parts.append(features(curve.trajectory, steps, units))
        losses.append(loss)
        owners.append(np.full(len(steps), i))
        weights.append(spread(steps))
    weight = np.concatenate(weights)
    return Points(stack(parts), np.concatenate(losses), np.concatenate(owners), weight / weight.mean())


def spread(steps: Steps) -> Array:
    """Return weights, summing to 1, that grow with the root of the distance between neighbours.

    Training evaluates more densely early on. Weights by distance would not see the warm-up at all, equal ones would
    see little else.
    """
    root = np.sqrt(np.gradient(steps.astype(float))) if len(steps) > 1 else np.ones(1)
    weights: Array = root / root.sum()
    return weights


@dataclass(frozen=True)
class Fit:
    """A law with its parameters for one validation set."""

    form: Form
    units: Units
    terms: tuple[Term, ...]
    theta: Array
    """The coefficients as they are, then the logs of the shapes."""
    cost: float
    condition: float
    """Condition number of the fit's Jacobian, its columns scaled to length 1."""
    openness: Openness
    """What the points leave open."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Return the names of the coefficients."""
        return Law(self.form.law, self.terms).coefficients

    @property
    def shapes(self) -> tuple[str, ...]:
        """Return the names of the shapes."""
        return Law(self.form.law, self.terms).shapes

    @property
    def values(self) -> dict[str, float]:
        """Return the parameters by name, in the units of `features`; a memory that was given is among them."""
        fixed = {} if self.form.memory is None else {"memory": self.form.memory}
        return fixed | _values(self.coefficients, self.shapes, self.theta)

    def predict(self, points: Features) -> Array:
        """Return the loss at all of `points`, in nats a token."""
        return self.form.bind(points, self.units).loss(self.values)[0]

    def predict_moves(self, points: Features) -> tuple[Array, Array]:
        """Return the loss at all of `points`, and how its log moves along each direction that is open, (n, p)."""
        loss, slopes = self.form.bind(points, self.units).loss(self.values)
        return loss, self.openness.moves((slopes / np.maximum(loss, FLOOR)).T)


def _values(coefficients: Sequence[str], shapes: Sequence[str], theta: Array) -> dict[str, float]:
    count = len(coefficients)
    named = dict(zip(coefficients, theta[:count].tolist(), strict=True))
    return named | dict(zip(shapes, np.exp(theta[count:]).tolist(), strict=True))


class _Problem:
    """The residuals of a law at some points, as scipy wants them: over `HUBER`, the tethers behind them."""

    def __init__(self, law: Law, points: Points, units: Units) -> None:
        self.law, self.points = law, points
        self.root_weight = np.sqrt(points.weight) / HUBER
        self.log_loss = np.log(points.loss)
        self.log_bounds = np.log([bounds(shape, units) for shape in law.shapes]).reshape(-1, 2)
        loose = [0.0 if name == "L0" else 1 / float(points.loss.mean()) for name in law.coefficients]
        self.pull = TETHER * np.sqrt(len(points.loss)) * np.concatenate([loose, 1 / np.ptp(self.log_bounds, axis=1)])
        self.rest = np.concatenate([np.zeros(len(loose)), self.log_bounds.mean(1)])
        if "g" in law.shapes:
            a_curve = np.sqrt(len(points.loss) / (points.curve.max() + 1))
            self.pull[len(loose) + law.shapes.index("g")] = a_curve / SIZE_PRIOR

    @property
    def box(self) -> tuple[Array, Array]:
        """Return the lowest and the highest value of each parameter."""
        low = [-np.inf if term.signed else 0.0 for term in self.law.terms]
        return (
            np.concatenate([low, self.log_bounds[:, 0]]),
            np.concatenate([np.full(len(low), np.inf), self.log_bounds[:, 1]]),
        )

    def _values(self, theta: Array) -> dict[str, float]:
        return _values(self.law.coefficients, self.law.shapes, theta)

    def openness(self, theta: Array) -> Openness:
        """Return what the points leave open; each curve counts as one look, however many points it has."""
        loss, slopes = self.law.loss(self._values(theta))
        slopes = slopes / np.maximum(loss, FLOOR)
        weight = self.points.weight
        share = weight / np.bincount(self.points.curve, weight)[self.points.curve]
        ranges = PRIOR_SHAPE * np.ptp(self.log_bounds, axis=1)
        prior = np.concatenate([np.full(len(self.law.terms), PRIOR_COEFFICIENT), ranges])
        return Openness.of((slopes * share) @ slopes.T, prior)

    def residuals(self, theta: Array) -> Array:
        loss, _ = self.law.loss(self._values(theta))
        errors = self.root_weight * (np.log(np.maximum(loss, FLOOR)) - self.log_loss)
        return np.concatenate([errors, self.pull * (theta - self.rest)])

    def jacobian(self, theta: Array) -> Array:
        loss, slopes = self.law.loss(self._values(theta))
        errors = slopes * (self.root_weight * (loss > FLOOR) / np.maximum(loss, FLOOR))
        jacobian: Array = np.concatenate([errors, np.diag(self.pull)], axis=1).T
        return jacobian

    def start(self, log_shapes: Array) -> Array:
        """Return the parameters of these shapes with the coefficients that fit best, relative errors squared."""
        shapes = dict(zip(self.law.shapes, np.exp(log_shapes).tolist(), strict=True))
        scale = self.root_weight / self.points.loss
        columns = self.law.columns(shapes)
        signed = np.array([term.signed for term in self.law.terms])
        matrix = np.concatenate([columns, -columns[signed]]) * scale
        try:
            found, _ = nnls(matrix.T, self.points.loss * scale)
        except RuntimeError:  # it did not converge: a start like any other, only a poor one
            found = np.zeros(len(matrix))
        coefficients = found[: len(columns)]
        coefficients[signed] -= found[len(columns) :]
        return np.concatenate([coefficients, log_shapes])

    def cost(self, theta: Array) -> float:
        """Return the Huber cost that the full fit lowers."""
        size = np.abs(self.residuals(theta))
        return float(np.where(size <= 1, 0.5 * size**2, size - 0.5).sum())

    def search(self, rng: np.random.Generator) -> Array:
        """Return the best of many random starts, the best of which were improved a little."""
        low, high = self.log_bounds.T
        tried = [self.start(rng.uniform(low, high)) for _ in range(N_SCREENED)]
        followed = [self.polish(s, POLISH_EVALUATIONS) for s in sorted(tried, key=self.cost)[:N_POLISHED]]
        return min(followed, key=lambda found: found[1])[0]

    def polish(self, theta: Array, evaluations: int) -> tuple[Array, float, Array]:
        """Return where `theta` leads to in so many evaluations, the cost, and the Jacobian there."""
        low, high = self.box
        margin = 1e-9 * np.maximum(1.0, np.abs(theta))
        inside = np.clip(theta, np.where(np.isfinite(low), low + margin, low), high - margin)
        found = least_squares(
            self.residuals,
            inside,
            self.jacobian,
            bounds=(low, high),
            loss="huber",
            x_scale="jac",
            max_nfev=evaluations,
            ftol=1e-6,
        )
        return found.x, float(found.cost), np.asarray(found.jac)


def fit(form: Form, points: Points, units: Units, rng: np.random.Generator, near: Array | None = None) -> Fit:
    """Return the fit of a law to measured points.

    Minimises Huber's loss of the weighted log-loss errors. Random shapes are tried first, each with its best
    coefficients, in which the law is linear; the full fit starts from the best of them. It starts from `near`, the
    parameters of a fit to nearly the same points, where they are given.
    """
    law = form.bind(points.features, units)
    problem = _Problem(law, points, units)
    theta, cost, jacobian = problem.polish(problem.search(rng) if near is None else near, FINAL_EVALUATIONS)
    lengths = np.linalg.norm(jacobian, axis=0)
    condition = float(np.linalg.cond(jacobian / np.where(lengths > 0, lengths, 1.0)))
    return Fit(form, units, law.terms, theta, cost, condition, problem.openness(theta))
