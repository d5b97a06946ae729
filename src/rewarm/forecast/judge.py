"""What a reader must know before believing a forecast: what is poor, what is not identified, what is beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rewarm.forecast.fitted import SideFit, Study, sizes_of
from rewarm.forecast.holdout import inside, r2, size_index
from rewarm.forecast.laws import bounds, size_text

POOR_FINAL = 0.02
"""Mean absolute error of held-out final losses, as a share, from which on nothing is recommended."""
POOR_CURVE = 0.03
"""The same of whole held-out curves."""
POOR_R2 = 0.8
FARTHEST_SIZE = 10.0
"""How many times the parameters of the largest model below it one may have, for anything to be recommended."""
WIDE = 10.0
"""Ratio of an interval's ends from which on a positive parameter counts as not identified."""
NEGLIGIBLE = 1e-4
"""Coefficient, in nats, under which a term is as good as left out."""
AT_BOUND = 0.01
"""Distance from a bound, as a share of the log range, at which a parameter counts as stuck to it."""


@dataclass(frozen=True)
class Judgement:
    """Lines for the reader. With any `faults`, numbers are shown but nothing is recommended."""

    faults: list[str]
    cautions: list[str]


def unidentified(side: SideFit, tokens_per_step: float) -> list[str]:
    """Return the parameters that the runs do not pin down.

    Their interval is wide or holds both signs, they are stuck to a bound, or their term is as good as absent.
    """
    found = []
    intervals = side.intervals(tokens_per_step)
    for name, (_, low, high) in intervals.items():
        if name == "lambda":
            continue  # memory, written another way
        small, large = sorted((abs(low), abs(high)))
        if low < 0 < high or large > WIDE * small:
            found.append(name)
    values = side.fit.values
    for name in side.fit.shapes:
        low, high = bounds(name, side.fit.units)
        if min(math.log(values[name] / low), math.log(high / values[name])) < AT_BOUND * math.log(high / low):
            found.append(name)
    for term in side.fit.terms:
        if abs(values[term.coefficient]) < NEGLIGIBLE:
            found += [term.coefficient, *term.shapes]
    return [name for name in intervals if name in found]


def _held_out_faults(name: str, side: SideFit) -> list[str]:
    judged = inside(side.held_out)
    final = float(np.mean([abs(e.final) for e in judged]))
    curve = float(np.mean([e.curve for e in judged if e.curve is not None] or [0.0]))
    found = []
    if final > POOR_FINAL:
        found.append(f"{name}: final losses of held-out runs are missed by {final:.1%} on average")
    if curve > POOR_CURVE:
        found.append(f"{name}: curves of held-out runs are missed by {curve:.1%} on average")
    return found


def _held_out_cautions(name: str, side: SideFit) -> list[str]:
    judged = inside(side.held_out)
    found = []
    final = float(np.mean([abs(e.final) for e in judged]))
    guessed = float(np.mean([abs(e.naive) for e in judged if e.naive is not None] or [np.inf]))
    if final >= guessed:
        how = (
            "moving them from the next smaller model"
            if side.process
            else "taking them from the run with the nearest max LR"
        )
        found.append(
            f"{name}: held-out final losses are missed by {final:.2%}; {how}, without any law, by {guessed:.2%}"
        )
    warmups = [e.warmup for e in side.held_out if e.warmup is not None]
    after = [e.curve for e in side.held_out if e.curve is not None]
    if warmups and after and float(np.mean(warmups)) > max(2 * float(np.mean(after)), 0.01):
        found.append(
            f"{name}: during warm-up held-out losses are missed by {np.mean(warmups):.1%}, after it by "
            f"{np.mean(after):.1%}; try law=auto"
        )
    return found


def _fit_faults(name: str, side: SideFit) -> list[str]:
    found = []
    explained = r2(side.in_sample)
    if explained < POOR_R2:
        found.append(f"{name}: the law explains only {max(explained, 0):.0%} of the variance of its own runs")
    points, parameters = sum(len(e.steps) for e in side.in_sample), len(side.fit.theta)
    if points < 3 * parameters:
        found.append(f"{name}: {points} measured losses for {parameters} parameters")
    return found


def judge(study: Study) -> Judgement:
    """Return what speaks against the study's numbers."""
    faults, cautions = [], []
    for name, side in study.sides.items():
        faults += _fit_faults(name, side)
        if side.held_out:
            faults += _held_out_faults(name, side)
            cautions += _held_out_cautions(name, side)
    if not study.held_out:
        faults.append("nothing could be held out: one arm alone says nothing about schedules that it did not run")
    sizes = {curve.trajectory.tokens_per_step for curve in study.curves}
    if max(sizes) > 1.01 * min(sizes):
        cautions.append(
            f"the runs' steps have {min(sizes):,.0f} to {max(sizes):,.0f} tokens; the laws know nothing of batch size"
        )
    models = sizes_of(study.curves)
    if models:
        held = {e.run for e in study.held_out}
        if not any(c.name in held and size_index(c, models) for c in study.curves):
            cautions.append(
                "no model but the smallest has two arms: how well the law moves to a larger one was not seen"
            )
        if models[-1] > FARTHEST_SIZE * models[-2]:
            far = f"{size_text(models[-1])} is {models[-1] / models[-2]:.3g} times {size_text(models[-2])}"
            faults.append(f"{far}, the largest model below it that was run; give runs of one in between")
    unfinished = [curve.name for curve in study.curves if not curve.finished]
    if unfinished:
        cautions.append(f"unfinished, used as far as they are: {', '.join(unfinished)}")
    return Judgement(faults, cautions)
