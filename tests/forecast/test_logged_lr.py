from pathlib import Path

import numpy as np
import pytest

from rewarm.forecast.logged_lr import between, lr_of_updates, warmup_of
from rewarm.forecast.options import Logged
from rewarm.schedules import ScheduleSpec, lr_curve

STEPS = 24_000
PATH = Path("run.csv")


def _spec(name: str) -> ScheduleSpec:
    return ScheduleSpec(name, 3e-4, 3e-5, 2160, STEPS)


def _lines(name: str, first: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(first, STEPS + 1, every, dtype=float)
    return steps, lr_curve(_spec(name), steps)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "infinite_cosine"])
@pytest.mark.parametrize(("every", "closely"), [(128, 2e-4), (1000, 3e-3)])
def test_the_lr_between_lines_goes_as_the_lines_around_it_do(name: str, every: int, closely: float) -> None:
    """The area under the LR, which the laws read, is met; the first line comes after the warm-up."""
    lines = _lines(name, 2160, every)
    curve, warmup = lr_of_updates(PATH, Logged(), lines, int(lines[0][-1]))
    true = lr_curve(_spec(name), np.arange(1, len(curve) + 1))
    assert warmup == 2160
    assert np.abs(curve - true).sum() < closely * true.sum()


def test_straight_stretches_are_met_exactly_up_to_the_gap_that_holds_their_corner() -> None:
    steps = np.arange(0.0, 1001, 100)
    lr = np.where(steps <= 500, 1.0, 1 - (steps - 500) / 1000)
    at = np.arange(1, 1001)
    assert between(steps, lr, at) == pytest.approx(np.interp(at, steps, lr))


def test_a_jump_between_two_lines_stays_between_them() -> None:
    steps = np.arange(0.0, 1001, 100)
    curve = between(steps, np.where(steps < 500, 1.0, 0.3), np.arange(1, 1001))
    assert (curve[:400] == 1).all()
    assert curve[499:] == pytest.approx(np.full(501, 0.3))
    assert (np.diff(curve) <= 0).all()


@pytest.mark.parametrize(
    ("steps", "lr", "said", "first", "warmup"),
    [
        ([500, 600, 700, 800], [3e-4] * 4, None, 3e-4 / 500, 500),  # lines before 500 are missing
        ([100, 200, 300, 400], [3e-4] * 4, None, 3e-4, 0),  # none is: no warm-up was seen
        ([100, 200, 300, 400], [1e-4, 2e-4, 3e-4, 3e-4], None, 1e-6, 300),  # it rises
        ([100, 200, 300, 400], [3e-4] * 4, 20, 3e-4 / 20, 20),
        ([0, 100, 200, 300], [0.0, 3e-4, 3e-4, 3e-4], 20, 3e-4 / 20, 20),
        ([500, 600, 700, 800], [3e-4] * 4, 0, 3e-4, 0),
    ],
)
def test_the_start_is_said_or_a_straight_rise(
    steps: list[float], lr: list[float], said: int | None, first: float, warmup: int
) -> None:
    curve, found = lr_of_updates(PATH, Logged(warmup_steps=said), (np.array(steps, float), np.array(lr)), 800)
    assert curve[0] == pytest.approx(first)
    assert found == warmup
    assert curve[:warmup] == pytest.approx(np.arange(1, warmup + 1) * curve[max(warmup, 1) - 1] / max(warmup, 1))


def test_what_is_assumed_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    lr_of_updates(PATH, Logged(), _lines("cosine", 2160, 128), STEPS)
    [line] = caplog.messages
    assert line.startswith("run.csv: the LR is taken before its first line, at update 2160, to rise from 0")
    caplog.clear()
    lr_of_updates(PATH, Logged(warmup_steps=2160), _lines("cosine", 2160, 128), STEPS)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("lr", "steps"),
    [([0.1, 0.5, 1.0, 0.8], 3), ([1.0, 0.9, 0.5], 0), ([1.0, 1.0, 1.0], 0), ([0.25, 0.5, 0.75, 1.0], 4)],
)
def test_the_warm_up_is_read_off_the_lr(lr: list[float], steps: int) -> None:
    assert warmup_of(np.array(lr)) == steps
