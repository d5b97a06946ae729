"""Arms of a sweep that cannot win any more, by what a law makes of all that its runs have measured so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.config.schema import SIDES
from rewarm.forecast.coverage import Seen, measured_start
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import features
from rewarm.forecast.options import Options
from rewarm.forecast.process import LENGTHS, places
from rewarm.forecast.recommend import Goal, arms_of
from rewarm.forecast.surrogate import Surrogate
from rewarm.runs.stopped import Reason

CHANCE = 0.005
"""An arm is given up when its chance to win is below this."""
DRAWS = 2000
"""Joint draws of what the arms will come to."""


@dataclass(frozen=True)
class Asked:
    """An arm that is not finished: what it is to be, and its run that is under way, where there is one."""

    trajectory: Trajectory
    curve: Curve | None = None


def hopeless(curves: Sequence[Curve], asked: Mapping[str, Asked], options: Options) -> dict[str, Reason]:
    """Return those of the arms asked about that cannot win, by name.

    With a goal in the options (`weights`, `max_forgetting`) an arm wins that has the least value of all that keep to
    the limit; without, one that no finished arm beats on both losses. What will come of an arm is drawn from the
    surrogate. An arm that the law cannot tell, or that has not begun and lies outside what the curves cover, is never
    among them.
    """
    finished = [curve for curve in curves if curve.finished]
    if not finished:
        return {}
    seen = Seen.of(curves)
    told = {
        name: arm
        for name, arm in asked.items()
        if not seen.withheld(arm.trajectory)
        and (arm.curve or not seen.beyond(arm.trajectory))
        # The first few per cent of replay do the most, and between two shares the law is often far off.
        and any(np.isclose(c.trajectory.replay, arm.trajectory.replay, rtol=0.2) for c in finished)
    }
    ended = {arm.label: arm.finals for arm in arms_of(finished) if arm.finals.keys() >= set(SIDES)}
    found = Surrogate.of(curves, SIDES, options.seed) if told and ended else None
    return _beaten(found, told, ended, options) if found else {}


def _beaten(
    result: Surrogate, asked: Mapping[str, Asked], ended: Mapping[str, dict[str, float]], options: Options
) -> dict[str, Reason]:
    recipes = [(arm.trajectory, arm.curve.name if arm.curve else None) for arm in asked.values()]
    drawn = result.draws(recipes, DRAWS, np.random.default_rng(options.seed))
    up, down = drawn[..., 0], drawn[..., 1]  # (draws, arms)
    theirs = np.array([[finals[side] for finals in ended.values()] for side in SIDES])
    if options.recommends:
        before = start_losses(result)["upstream"]
        goal = Goal.of(options, before)
        beats = (
            goal.values(theirs[0], theirs[1], before) < goal.values(up, down, before)[..., None]
        )  # (draws, arms, ended)
    else:
        beats = (theirs[0] < up[..., None]) & (theirs[1] < down[..., None])
    sure = beats.any(axis=-1).mean(axis=0) > 1 - CHANCE
    ends, found = result.predicted(recipes), {}
    for i in np.flatnonzero(sure):
        often = beats[:, i].mean(axis=0)
        best = min(np.flatnonzero(often == often.max()), key=lambda j: theirs[:, j].sum())
        found[list(asked)[i]] = Reason(*ends[i], list(ended)[best], list(ended.values())[best])
    return found


def start_losses(result: Surrogate) -> dict[str, float]:
    """Return both losses before any update: measured where they were, else as the law has them."""
    found = {}
    for side, (law, _) in result.sides.items():
        measured = measured_start(result.curves, side)
        origin = features(result.curves[0].trajectory, np.array([0]), result.units)
        found[side] = float(law.predict(origin)[0]) if measured is None else measured
    return found


def telling_order(trajectories: Sequence[Trajectory]) -> list[int]:
    """Return in which order trainings tell the most: each the farthest from all before it, the seeds of one last.

    So the surrogate soon stands between arms that it knows, where sweeps list them from one end to the other.
    """
    ends = np.concatenate([places(t, np.array([len(t.lr)])) for t in trajectories]) / LENGTHS
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
    order = [int(np.linalg.norm(ends - ends.mean(axis=0), axis=1).argmin())]
    nearest = apart[order[0]].copy()
    nearest[order] = -1.0
    while len(order) < len(ends):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, apart[order[-1]])
        nearest[order] = -1.0
    return order
