"""A study: a law chosen, fitted and held out on measured curves, and what its fits then predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rewarm.errors import UserError
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import PACES, Units, features, units_of
from rewarm.forecast.fit import Fit, bootstrap, fit, points_of
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.holdout import Errors, errors_of, hold_out, inside, pick, splits
from rewarm.forecast.laws import LAWS, REPLAY_TERMS, form_of, paper_units
from rewarm.forecast.options import Options

LEVEL = 0.9
"""Probability that intervals and bands are meant to hold."""
NORMAL_QUANTILE = 1.645
"""Half-width of a normal distribution's central interval of that probability, in standard deviations."""


@dataclass(frozen=True)
class Band:
    """A predicted loss and the interval about it, in nats a token; all of one shape."""

    loss: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class SideFit:
    """All that was learnt about one validation set."""

    fit: Fit
    replicates: list[Fit]
    """Fits to resampled runs."""
    in_sample: list[Errors]
    held_out: list[Errors]

    @property
    def spread(self) -> float:
        """Return the typical error of a prediction, as a share: root mean square, on held-out runs where any."""
        told_by = inside(self.held_out) or self.in_sample
        errors = [e.relative[e.steps > e.warmup_steps] for e in told_by]
        finals = np.array([e.final for e in told_by])
        return float(np.sqrt(max((np.concatenate(errors) ** 2).mean(), (finals**2).mean())))

    def predict(self, trajectory: Trajectory, steps: Steps) -> Band:
        """Return the loss after each of `steps` updates of a trajectory.

        The band joins what resampling the runs changes with the error on runs that were held out.
        """
        points = features(trajectory, steps, self.fit.units)
        loss = self.fit.predict(points)
        width = NORMAL_QUANTILE * self.spread
        low, high = np.zeros(len(loss)), np.zeros(len(loss))
        if self.replicates:
            logs = np.log(np.maximum([r.predict(points) for r in self.replicates], 1e-3)) - np.log(loss)
            low, high = np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        below, above = np.hypot(np.minimum(low, 0), width), np.hypot(np.maximum(high, 0), width)
        return Band(loss, loss * np.exp(-below), loss * np.exp(above))

    def intervals(self, tokens_per_step: float) -> dict[str, tuple[float, float, float]]:
        """Return value, lower and upper end of each parameter, as the papers write them."""
        units = self.fit.units
        value = paper_units(self.fit.values, units, tokens_per_step)
        drawn = [paper_units(r.values, units, tokens_per_step) for r in self.replicates]
        ends = {}
        for name in value:
            values = [d[name] for d in drawn] or [np.nan]
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            ends[name] = (value[name], float(low), float(high))
        return ends


@dataclass(frozen=True)
class Study:
    """A law fitted to the curves, one fit for each validation set."""

    law: str
    replay_term: str | None
    curves: list[Curve]
    """All that were read, fitted or held out."""
    fitted: list[Curve]
    units: Units
    sides: dict[str, SideFit]
    tried: dict[str, float]
    """Hold-out score of each law that was tried, where there was a choice."""

    @property
    def tokens_per_step(self) -> float:
        """Return the tokens of a step that parameters are given for."""
        return common_tokens_per_step(self.curves)

    @property
    def held_out(self) -> list[Errors]:
        """Return the errors on held-out runs, of all validation sets."""
        return [error for side in self.sides.values() for error in side.held_out]


def sides_of(curves: Sequence[Curve]) -> list[str]:
    """Return the validation sets that all curves have; upstream and downstream first, in this order."""
    common = set.intersection(*(set(curve.losses) for curve in curves))
    if not common:
        found = "; ".join(f"{curve.name}: {', '.join(curve.losses)}" for curve in curves)
        raise UserError(f"the runs have no validation set in common ({found}); name their losses alike")
    return sorted(common, key=lambda side: (side != "upstream", side != "downstream", side))


def common_tokens_per_step(curves: Sequence[Curve]) -> float:
    """Return the tokens of a step that most of the curves have."""
    counts = [curve.trajectory.tokens_per_step for curve in curves]
    return max(counts, key=counts.count)


def score(errors: Sequence[Errors]) -> float:
    """Return what laws are compared by: mean absolute error of final losses, plus that of whole curves."""
    curves = [e.curve for e in errors if e.curve is not None]
    return float(np.mean([abs(e.final) for e in errors]) + (np.mean(curves) if curves else 0.0))


def _variants(options: Options, curves: Sequence[Curve]) -> list[tuple[str, str | None]]:
    """Return the laws, each with its replay term, among which hold-out is to choose."""
    laws = LAWS if options.law == "auto" else (options.law,)
    replays = len({curve.trajectory.replay for curve in curves}) > 1
    terms = (REPLAY_TERMS if options.replay_term == "auto" else (options.replay_term,)) if replays else (None,)
    return [
        (law, term)
        for law, term in product(laws, terms)
        if law.startswith("cpt") or term == terms[0]  # the others have no replay term
    ]


def study(curves: list[Curve], options: Options) -> Study:
    """Return the study of `curves` that the options ask for."""
    sides = sides_of(curves)
    memory = None if options.memory is None else options.memory * common_tokens_per_step(curves)
    paces = PACES if options.law in ("auto", "cpt_paced") else (0.0,)
    units = units_of([curve.trajectory for curve in curves], memory, paces)
    named = pick(curves, options.holdout)
    fitted = [curve for i, curve in enumerate(curves) if i not in named]
    if not fitted:
        raise UserError("holdout: names every run; leave at least one to fit")
    groups = [named] if named else splits(curves)

    def held_out(law: str, term: str | None) -> dict[str, list[Errors]]:
        return {s: hold_out(law, term, curves, s, units, options.seed, groups, memory) for s in sides}

    variants = _variants(options, fitted)
    found = {variant: held_out(*variant) for variant in variants}
    scores = {v: score([e for errors in found[v].values() for e in errors]) for v in variants if groups}
    best = min(scores, key=lambda v: scores[v]) if scores else variants[0]
    law, term = best
    results = {}
    for side in sides:
        rng = np.random.default_rng(options.seed)
        points = points_of(fitted, side, units)
        main = fit(form_of(law, points.features, term, memory), points, units, rng)
        results[side] = SideFit(
            fit=main,
            replicates=bootstrap(main, points, [curve.arm for curve in fitted], rng, options.bootstrap),
            in_sample=[errors_of(main, curve, side) for curve in fitted],
            held_out=found[best][side],
        )
    tried = {law + (f" with {term} replay" if term else ""): value for (law, term), value in scores.items()}
    return Study(law, term, curves, fitted, units, results, tried if len(variants) > 1 else {})
