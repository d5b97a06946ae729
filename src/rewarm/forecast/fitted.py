"""A study: a law chosen, fitted and held out on measured curves, and what its fits then predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.stats import t as student

from rewarm.errors import UserError
from rewarm.forecast.bands import LEVEL, Scale
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import Units, features, stack, units_of
from rewarm.forecast.fit import Fit, fit, points_of
from rewarm.forecast.history import Array, Steps
from rewarm.forecast.holdout import (
    Errors,
    errors_of,
    hold_out,
    largest_but_one_arm,
    pick,
    process_of,
    splits,
    with_process,
)
from rewarm.forecast.laws import LAWS, REPLAY_TERMS, distinct_sizes, form_of, paper_units
from rewarm.forecast.options import Options
from rewarm.forecast.process import NEW_RUN, Process, places


@dataclass(frozen=True)
class Band:
    """A predicted loss and the interval about it, in nats a token; all of one shape."""

    loss: Array
    low: Array
    high: Array
    """Ends, meant to hold the loss that a run would log, nine times of ten."""
    error: Array
    """Standard deviation of what a run would log."""


@dataclass(frozen=True)
class SideFit:
    """All that was learnt about one validation set."""

    fit: Fit
    in_sample: list[Errors]
    held_out: list[Errors]
    scale: Scale
    """How far off predicted runs are."""
    process: Process | None = None
    """What the law misses alike at all sizes, where the runs have several."""

    def predict(self, trajectory: Trajectory, steps: Steps) -> Band:
        """Return the loss after each of `steps` updates of a trajectory."""
        loss, moves = self.fit.predict_moves(features(trajectory, steps, self.fit.units))
        if self.process:
            mean, covariance = self.process.at(places(trajectory, steps), np.full(len(steps), NEW_RUN))
            loss, deviation = loss * np.exp(mean), np.sqrt(np.diag(covariance))
            half = np.asarray(student.ppf((1 + LEVEL) / 2, self.process.freedom) * deviation)
        else:
            deviation = self.scale.deviation(self.fit.openness, moves)
            half = self.scale.half_band(deviation)
        return Band(loss, loss * np.exp(-half), loss * np.exp(half), loss * np.hypot(deviation, self.scale.jitter))

    def intervals(self, tokens_per_step: float) -> dict[str, tuple[float, float, float]]:
        """Return value, lower and upper end of each parameter, as the papers write them.

        About the value lies what the fit leaves open, as in a band: of shapes by their logs.
        """
        theta, openness = self.fit.theta, self.fit.openness

        def paper(theta: Array) -> dict[str, float]:
            return paper_units(replace(self.fit, theta=theta).values, self.fit.units, tokens_per_step)

        values, nudges = paper(theta), 1e-5 * np.diag(np.maximum(np.abs(theta), 1.0))
        nudged = [(paper(theta + nudge), paper(theta - nudge), 2 * nudge.sum()) for nudge in nudges]
        slopes = np.array([[(up[name] - down[name]) / width for up, down, width in nudged] for name in values])
        deviations = np.linalg.norm(openness.moves(slopes) * openness.widths(self.scale.error), axis=1)
        signed = {term.coefficient for term in self.fit.terms if term.signed}
        ends = {}
        for (name, at), half in zip(values.items(), self.scale.half(deviations).tolist(), strict=True):
            if name in self.fit.shapes:
                ends[name] = (at, at * math.exp(-half / at), at * math.exp(half / at))
            else:
                ends[name] = (at, at - half if name in signed else max(at - half, 0.0), at + half)
        if "lambda" in ends:
            value, low, high = ends["memory"]
            ends["lambda"] = (math.exp(-1 / value), math.exp(-1 / low), math.exp(-1 / high))
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

    def draws(self, recipes: Sequence[Trajectory], count: int, rng: np.random.Generator) -> Array:
        """Return `count` joint draws of the final losses of trainings, (count, recipes, sides), in nats a token.

        They scatter about the prediction as far as the bands say, so that the best of several can be told from luck.
        """
        drawn = []
        for side in self.sides.values():
            ends = stack([features(t, np.array([len(t.lr)]), self.units) for t in recipes])
            loss, moves = side.fit.predict_moves(ends)
            drawn.append(loss * np.exp(side.scale.draws(side.fit.openness, moves, count, rng)))
        return np.stack(drawn, axis=-1)

    @property
    def proxied(self) -> bool:
        """Return whether what is called upstream is a proxy of the old data."""
        return any(curve.config is not None and curve.config.proxied for curve in self.curves)

    @property
    def sized(self) -> bool:
        """Return whether the runs are of models of several sizes."""
        return bool(sizes_of(self.curves))

    @property
    def held_out(self) -> list[Errors]:
        """Return the errors on held-out runs, of all validation sets."""
        return [error for side in self.sides.values() for error in side.held_out]


def sizes_of(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Return the parameters of the curves' models, rising; none where all have as many, or nobody said."""
    return distinct_sizes(curve.trajectory.parameters or np.nan for curve in curves)


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
    laws = tuple(LAWS) if options.law == "auto" else (options.law,)
    replays = len({curve.trajectory.replay for curve in curves}) > 1
    terms = (REPLAY_TERMS if options.replay_term == "auto" else (options.replay_term,)) if replays else (None,)
    return [
        (law, term)
        for law, term in product(laws, terms)
        if LAWS[law].shift or term == terms[0]  # a law without a shift has nothing that replay could lessen
    ]


def study(curves: list[Curve], options: Options) -> Study:
    """Return the study of `curves` that the options ask for."""
    sides = sides_of(curves)
    memory = None if options.memory is None else options.memory * common_tokens_per_step(curves)
    units = units_of([curve.trajectory for curve in curves], memory)
    named = pick(curves, options.holdout)
    fitted = [curve for i, curve in enumerate(curves) if i not in named]
    if not fitted:
        raise UserError("holdout: names every run; leave at least one to fit")
    sizes = sizes_of(fitted)
    larger = largest_but_one_arm(fitted) if sizes and not named else []
    groups = [named or larger] if named or larger else splits(curves)

    def held_out(law: str, term: str | None) -> dict[str, list[Errors]]:
        return {s: hold_out(law, term, curves, s, units, options.seed, groups, memory) for s in sides}

    def missed(runs: list[Curve], side: str) -> Process | None:
        in_turn = splits(runs)
        return process_of(hold_out(law, term, runs, side, units, options.seed, in_turn, memory), runs, in_turn)

    trajectories = {curve.name: curve.trajectory for curve in curves}
    variants = _variants(options, fitted)
    found = {variant: held_out(*variant) for variant in variants}
    scores = {v: score([e for errors in found[v].values() for e in errors]) for v in variants if groups}
    best = min(scores, key=lambda v: scores[v]) if scores else variants[0]
    law, term = best
    results = {}
    arms = len({curves[i].arm for group in groups for i in group})
    for side in sides:
        points = points_of(fitted, side, units)
        main = fit(form_of(law, points.features, term, memory), points, units, np.random.default_rng(options.seed))
        in_sample, errors = [errors_of(main, curve, side) for curve in fitted], found[best][side]
        scale = Scale.of([e.miss for e in errors if not e.withheld], [e.miss for e in in_sample], arms)
        process = missed(fitted, side) if sizes else None
        if sizes and (named or larger):
            before = missed([c for i, c in enumerate(fitted) if i not in larger], side) if larger else process
            errors = [with_process(e, before, trajectories[e.run]) for e in errors]
        results[side] = SideFit(main, in_sample, errors, scale, process)
    tried = {law + (f" with {term} replay" if term else ""): value for (law, term), value in scores.items()}
    return Study(law, term, curves, fitted, units, results, tried if len(variants) > 1 else {})
