from dataclasses import replace

import numpy as np
import pytest

from rewarm.forecast.coverage import Seen, fallen
from rewarm.forecast.curves import Curve, Trajectory
from tests.forecast.synthetic import curve, trajectory


def _stopped(whole: Trajectory, steps: int) -> Trajectory:
    """Return a trajectory that ends early, its schedule laid out over the whole."""
    return replace(whole, lr=whole.lr[:steps])


def _curve(name: str, of: Trajectory) -> Curve:
    return curve(name, of)


COSINES = Seen.of([_curve("low", trajectory("cosine", 1e-4)), _curve("high", trajectory("cosine", 6e-4))])


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        (trajectory("cosine", 3e-4), None),
        (trajectory("cosine_neox", 3e-4), None),
        (trajectory("linear", 3e-4), None),
        (trajectory("cosine", 3e-4, steps=1100), None),
        (_stopped(trajectory("cosine", 3e-4), 700), None),  # a beginning of what was run
        (trajectory("cosine", 1e-3), "max_lr 0.001 outside 0.0001..0.0006 of the runs of its shape"),
        (trajectory("cosine", 3e-4, steps=6000), "3 times the tokens seen"),
        (trajectory("cosine", 3e-4, replay=0.5), "replay 0.5 outside 0..0"),
        (trajectory("cosine", 3e-4, warmup=0.1), "warm-up 0.1 outside 0.01..0.01"),
        (trajectory("cosine", 3e-4, steps=400), "no run had an LR curve of this shape and length"),
        (trajectory("wsd", 3e-4), "no run had an LR curve of this shape and length"),
        (trajectory("infinite_cosine", 3e-4), "no run had an LR curve of this shape and length"),
        (trajectory("constant", 3e-4), "no run had an LR curve of this shape and length"),
    ],
)
def test_a_training_is_inside_where_runs_of_its_shape_enclose_it(asked: Trajectory, phrase: str | None) -> None:
    assert COSINES.beyond(asked) == ((phrase,) if phrase else ())


def test_runs_that_were_stopped_early_say_nothing_about_annealing() -> None:
    """Their curves lie flat: full cosines of the same max LRs and fewer tokens lie outside of them."""
    stopped = Seen.of([_curve(f"{lr:g}", _stopped(trajectory("cosine", lr), 200)) for lr in (1e-4, 3e-4, 1e-3)])
    phrase = "its LR falls by 90%, no run's by more than 2%"
    assert stopped.withheld(trajectory("cosine", 3e-4, steps=200)) == phrase
    assert stopped.beyond(trajectory("cosine", 3e-4, steps=200)) != ()
    assert stopped.beyond(_stopped(trajectory("cosine", 5e-4), 200)) == ()


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        (trajectory("wsd", 6e-4, steps=6000), None),
        (trajectory("cosine", 1.2e-3), None),
        (trajectory("cosine", 3e-4, steps=7000), "3.5 times the tokens seen"),
        (trajectory("cosine", 2e-3), "max_lr 0.002 is 3.3 times the highest that was run"),
        (trajectory("cosine", 3e-4, replay=0.1), "replay 0.1 outside 0..0"),
    ],
)
def test_no_number_is_given_for_what_lies_too_far_from_all_runs(asked: Trajectory, phrase: str | None) -> None:
    assert COSINES.withheld(asked) == phrase


def test_what_one_shape_covers_another_does_not() -> None:
    """A constant LR was run at 3e-5 alone: other constant LRs lie outside, however high the cosines went."""
    constant = _curve("constant", trajectory("constant", 3e-5, warmup=0))
    seen = Seen.of([*COSINES.curves, constant])
    assert seen.beyond(trajectory("constant", 3e-5, warmup=0)) == ()
    assert seen.beyond(trajectory("constant", 3e-4, warmup=0)) == (
        "max_lr 0.0003 outside 3e-05..3e-05 of the runs of its shape",
    )


def test_a_corner_that_no_runs_enclose_lies_outside() -> None:
    """Replay was run at the low max LR alone: with the high one it is a guess, between the two it is half a guess."""
    kept = _curve("kept", trajectory("cosine", 1e-4, replay=0.25))
    seen = Seen.of([*COSINES.curves, kept])
    assert seen.beyond(trajectory("cosine", 1e-4, replay=0.1)) == ()
    assert seen.beyond(trajectory("cosine", 2e-4, replay=0.1)) == ()
    assert seen.beyond(trajectory("cosine", 6e-4, replay=0.25)) == (
        "no runs of its shape enclose max_lr 0.0006 with replay 0.25",
    )


def test_a_run_is_seen_as_far_as_it_was_measured() -> None:
    whole = trajectory("cosine", 3e-4)
    steps = np.arange(0, 600, 20)
    half = Curve("half", "half", whole, {"upstream": (steps, np.full(len(steps), 3.0))}, 2000)
    assert Seen.of([half]).tokens == 580 * whole.tokens_per_step
    assert Seen.of([half]).beyond(whole) != ()
    assert Seen.of([half]).beyond(whole, 500) == ()


def test_annealing_is_how_far_the_lr_has_fallen_from_its_maximum() -> None:
    assert fallen(np.array([0.5, 1.0, 0.25])) == 0.75
    assert fallen(np.array([0.5, 1.0])) == 0
    assert fallen(np.zeros(3)) == 1
