"""Which arms cannot win, on the project's table of 256 real runs: replayed, all that happened to them is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.stopping import GOALS, sweeps_of_table, value_of, winners

from rewarm.config.schema import SIDES
from rewarm.forecast.curves import Curve
from rewarm.forecast.features import features
from rewarm.forecast.options import Options
from rewarm.forecast.stopping import Asked, hopeless, telling_order
from rewarm.forecast.surrogate import FEWEST_ARMS, Surrogate

BOTH = Options(paths=())
FINISHED, SHOWN = 18, 6


@pytest.fixture(scope="module")
def sweep() -> list[Curve]:
    """Return 32 runs, four shapes at eight max LRs, in the order in which they tell the most."""
    curves = dict(sweeps_of_table())["replay 0.15, seed 0"]
    return [curves[i] for i in telling_order([c.trajectory for c in curves])]


def beginning(curve: Curve, shown: int) -> Curve:
    return replace(curve, losses={side: (s[:shown], v[:shown]) for side, (s, v) in curve.losses.items()})


def end(curve: Curve, side: str) -> float:
    return float(curve.losses[side][1][-1])


def test_the_process_adds_to_the_law_what_it_misses_and_says_how_sure_it_is(sweep: list[Curve]) -> None:
    finished, left = sweep[:FINISHED], sweep[FINISHED:]
    alone = Surrogate.of(finished, SIDES)
    begun = Surrogate.of([*finished, *(beginning(curve, SHOWN) for curve in left)], SIDES)
    assert alone is not None
    assert begun is not None
    errors = {}
    for side in SIDES:
        true = np.log([end(curve, side) for curve in left])
        law = alone.sides[side][0]
        ends = [features(c.trajectory, np.array([len(c.trajectory.lr)]), alone.units) for c in left]
        by_law = np.log([law.predict(points)[0] for points in ends])
        mean, spread = alone.finals([(curve.trajectory, None) for curve in left], side)
        later, narrower = begun.finals([(curve.trajectory, curve.name) for curve in left], side)
        errors[side] = [float(np.sqrt(((guess - true) ** 2).mean())) for guess in (by_law, mean, later)]
        assert np.abs((mean - true) / np.sqrt(np.diag(spread))).max() < 4
        assert np.diag(narrower).mean() < np.diag(spread).mean()
    for by_law, process, shown in errors.values():
        assert process < 0.5 * by_law
        assert shown < process < 0.01


@pytest.mark.parametrize("goal", list(GOALS))
def test_who_cannot_win_is_given_up_and_no_winner_is(sweep: list[Curve], goal: str) -> None:
    options = GOALS[goal]
    curves = [*sweep[:FINISHED], *(beginning(curve, SHOWN) for curve in sweep[FINISHED:-4])]
    asked = {c.name: Asked(c.trajectory, c) for c in curves[FINISHED:]}
    asked |= {c.name: Asked(c.trajectory) for c in sweep[-4:]}
    given_up = hopeless(curves, asked, options)
    assert not given_up.keys() & {curve.name for curve in winners(sweep, options)}
    assert len(given_up) >= (5 if options.recommends else 1)
    for name, reason in given_up.items():
        curve = next(c for c in sweep if c.name == name)
        better = next(c for c in sweep if c.name == reason.better)
        assert reason.measured == {side: end(better, side) for side in SIDES}
        for side in SIDES:
            assert reason.predicted[side] == pytest.approx(end(curve, side), rel=0.05)
        if options.recommends:
            assert value_of(better, options, -1) < value_of(curve, options, -1)
    assert hopeless(curves, asked, options) == given_up, "the same curves give the same answer"


def test_what_cannot_be_told_is_never_given_up(sweep: list[Curve]) -> None:
    last = sweep[-1]
    assert hopeless([], {last.name: Asked(last.trajectory)}, BOTH) == {}
    few = sweep[: FEWEST_ARMS - 1]
    assert hopeless(few, {last.name: Asked(last.trajectory)}, BOTH) == {}
    hot = replace(last.trajectory, lr=last.trajectory.lr * 1.5)  # beyond all that was run, and not begun
    other = replace(last.trajectory, replay=0.6)  # a share of replay that nobody has finished
    assert hopeless(sweep[:FINISHED], {"hot": Asked(hot), "other": Asked(other)}, GOALS["weights=1,1"]) == {}


def test_arms_far_from_all_before_them_come_first_and_seeds_last(sweep: list[Curve]) -> None:
    trajectories = [curve.trajectory for curve in sweep]
    order = telling_order([*trajectories, *trajectories])
    assert sorted(i % 32 for i in order[:32]) == list(range(32))
    peaks = [float(trajectories[i % 32].lr.max()) for i in order[:5]]
    assert {min(peaks), max(peaks)} == {min(t.lr.max() for t in trajectories), max(t.lr.max() for t in trajectories)}
