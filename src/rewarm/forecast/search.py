"""Which training to run next: the one that is expected to gain the most for its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.config.schema import SIDES
from rewarm.forecast.curves import Curve
from rewarm.forecast.options import Options
from rewarm.forecast.recommend import Goal, arms_of
from rewarm.forecast.stopping import DRAWS, Asked, start_losses
from rewarm.forecast.surrogate import Surrogate

FEWEST = 5
"""Finished arms from which on the next one is chosen by what they tell."""


@dataclass(frozen=True)
class Proposal:
    """A training that may be run next."""

    name: str
    gain: float
    """By how much it is expected to better the best training so far, in nats of the goal."""
    predicted: dict[str, float]
    """Final losses, in nats a token."""
    errors: dict[str, float]
    """Standard deviation of each."""


def propose(
    curves: Sequence[Curve], pool: Mapping[str, Asked], under_way: Sequence[str], options: Options
) -> Proposal | None:
    """Return the training of the pool with the largest expected gain a token; None while too few arms are finished.

    The gain is over the best of all that are finished, and of those `under_way`, whose ends are drawn together with
    the training's own. One that does not keep to the limit is no gain, and the model as it was is the least to beat.
    """
    left = [name for name in pool if name not in under_way]
    surrogate = Surrogate.of(curves, SIDES, options.seed, FEWEST)
    if surrogate is None or not left:
        return None
    names = [*left, *under_way]
    recipes = [(pool[name].trajectory, c.name if (c := pool[name].curve) else None) for name in names]
    drawn = surrogate.draws(recipes, DRAWS, np.random.default_rng(options.seed))
    before = start_losses(surrogate)
    goal = Goal.of(options, before["upstream"])
    value = goal.values(drawn[..., 0], drawn[..., 1], before["upstream"])
    ended = [arm.finals for arm in arms_of([curve for curve in curves if curve.finished])]
    upstream, downstream = (np.array([finals[side] for finals in ended]) for side in SIDES)
    theirs = goal.values(upstream, downstream, before["upstream"])
    known = min(goal.value(before), float(theirs.min(initial=np.inf)))
    best = np.minimum(known, value[:, len(left) :].min(axis=1, initial=np.inf))
    gain = np.maximum(best[:, None] - value[:, : len(left)], 0.0).mean(axis=0)
    chosen = int((gain / [pool[name].trajectory.tokens for name in left]).argmax())
    return Proposal(left[chosen], float(gain[chosen]), *surrogate.predicted(recipes)[chosen])
