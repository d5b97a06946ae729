import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.bands import Miss, Openness
from rewarm.forecast.curves import Curve
from rewarm.forecast.features import units_of
from rewarm.forecast.holdout import Errors, hold_out, inside, mae, naive, pick, r2, splits
from tests.forecast.synthetic import arms, curve, trajectory


def _errors(measured: list[float], predicted: list[float], warmup: int = 1) -> Errors:
    steps, miss = np.arange(len(measured)), Miss(np.zeros(1), np.zeros((1, 1)), Openness(np.eye(1), np.ones(1)))
    return Errors("run", "upstream", steps, np.array(measured), np.array(predicted), warmup, miss)


def test_errors_are_shares_of_the_measured_loss() -> None:
    e = _errors([2.0, 4.0, 2.0, 4.0], [2.0, 5.0, 2.2, 4.1])
    assert e.final == pytest.approx(0.025)
    assert e.warmup == pytest.approx(0.25)
    assert e.curve == pytest.approx((0.1 + 0.025) / 2)


def test_a_run_without_warm_up_has_no_error_there() -> None:
    assert _errors([2.0, 2.0], [2.0, 2.0], warmup=0).warmup is None


def test_r2_is_1_for_a_perfect_fit_and_0_for_the_mean() -> None:
    assert r2([_errors([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])]) == 1
    assert r2([_errors([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])]) == 0
    assert mae([_errors([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])]) == pytest.approx(2 / 3)


def test_seeds_of_an_arm_are_held_out_together() -> None:
    a = curve("a0", trajectory("cosine", 3e-4))
    seeds = [Curve(name, "a", a.trajectory, a.losses, a.planned_steps) for name in ("a0", "a1")]
    assert splits([*seeds, curve("b", trajectory("wsd", 3e-4))]) == [[0, 1], [2]]


def test_one_arm_alone_cannot_be_held_out() -> None:
    assert splits([curve("a", trajectory("cosine", 3e-4))]) == []


def test_a_name_that_no_run_has_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"holdout=hihg: no such run, did you mean 'high'\?"):
        pick(arms(), ["hihg"])


def test_a_held_out_run_is_predicted_without_having_been_seen() -> None:
    """A run whose losses are wrong throughout must come out wrong, not be followed."""
    curves = arms()
    steps, loss = curves[3].losses["upstream"]
    curves[3] = Curve("wsd", "wsd", curves[3].trajectory, {"upstream": (steps, loss + 0.5)}, 2000)
    units = units_of([c.trajectory for c in curves])
    [e] = hold_out("cpt", None, curves, "upstream", units, 0, [[3]])
    assert e.final == pytest.approx(-0.5 / loss[-1], abs=0.03)


def test_arms_at_the_edge_or_of_a_shape_of_their_own_do_not_count_as_inside() -> None:
    arms = [("low", "cosine", 1.5e-4), ("middle", "cosine", 3e-4), ("high", "cosine", 6e-4), ("wsd", "wsd", 3e-4)]
    curves = [curve(name, trajectory(schedule, lr)) for name, schedule, lr in arms]
    units = units_of([c.trajectory for c in curves])
    found = hold_out("cpt", None, curves, "upstream", units, 0, splits(curves))
    assert {e.run for e in inside(found)} == {"middle"}
    assert abs(inside(found)[0].final) < 0.01
    assert {e.run for e in inside([e for e in found if e.beyond])} == {"low", "high", "wsd"}


def test_the_naive_guess_is_the_final_loss_of_the_run_with_the_nearest_max_lr() -> None:
    near, far = curve("near", trajectory("wsd", 4e-4)), curve("far", trajectory("cosine", 5e-5))
    asked = curve("asked", trajectory("cosine", 3e-4))
    wanted = near.losses["upstream"][1][-1] / asked.losses["upstream"][1][-1] - 1
    assert naive(asked, [far, near], "upstream") == pytest.approx(wanted)
