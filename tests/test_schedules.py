from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_wsd_schedule,
)
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from rewarm.schedules import SCHEDULES, ScheduleSpec, landmarks, lr, lr_curve

MAX, MIN, WARMUP, TOTAL = 1.0, 0.1, 10, 1000
SPEC = ScheduleSpec("cosine", MAX, MIN, WARMUP, TOTAL)
PAPER = ScheduleSpec("cosine_neox", 3e-4, 3e-5, 1313, 131_296)


def reference(make: object, steps: int) -> np.ndarray:
    """Return the LRs that a scheduler of torch or transformers gives to its steps 0, 1, …, `steps`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=MAX)
    scheduler = make(optimizer)  # type: ignore[operator]
    values = []
    for _ in range(steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(values)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"no_rewarm"}))
def test_warm_up_is_a_straight_line_from_zero_that_ends_at_the_maximum(name: str) -> None:
    spec = replace(SPEC, name=name)
    assert [lr(spec, t) for t in range(WARMUP + 1)] == pytest.approx([t / WARMUP for t in range(WARMUP + 1)])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_without_warm_up_the_curve_starts_at_the_maximum(name: str) -> None:
    spec = replace(SPEC, name=name, warmup_steps=0)
    assert lr(spec, 0) == pytest.approx(MAX)
    assert lr(spec, 1) == pytest.approx(MAX, rel=0.06)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 1, WARMUP, 600, TOTAL])
def test_curves_stay_between_zero_and_the_maximum_and_end_flat(name: str, warmup: int) -> None:
    spec = replace(SPEC, name=name, warmup_steps=warmup)
    curve = lr_curve(spec, np.arange(TOTAL + 500))
    assert np.isfinite(curve).all()
    assert curve.min() >= 0
    assert curve.max() <= MAX * (1 + 1e-12)
    assert (np.diff(curve[warmup + 1 :]) <= 1e-12).all(), "after the warm-up no schedule rises"
    assert curve[TOTAL + 1 :] == pytest.approx(np.full(499, curve[TOTAL + 1]))


# (name, step): share of the maximum, at each boundary
TABLE = {
    ("constant", WARMUP + 1): 1.0,
    ("constant", TOTAL): 1.0,
    ("linear", WARMUP): 1.0,
    ("linear", WARMUP + 1): 1.0 - 0.9 / 990,
    ("linear", 505): 0.55,
    ("linear", TOTAL): 0.1,
    ("cosine", WARMUP + 1): 0.1 + 0.45 * (1 + math.cos(math.pi / 990)),
    ("cosine", 505): 0.55,
    ("cosine", TOTAL - 1): 0.1 + 0.45 * (1 + math.cos(math.pi * 989 / 990)),
    ("cosine", TOTAL): 0.1,
    ("cosine_neox", WARMUP + 1): 0.5 * (1 + math.cos(math.pi / 1000)),
    ("cosine_neox", 510): 0.5,
    ("cosine_neox", TOTAL): 0.1,
    ("wsd", 900): 1.0,
    ("wsd", 901): 1.0 - 0.9 / 100,
    ("wsd", TOTAL): 0.1,
    ("inverse_sqrt", WARMUP + 10): 1 / math.sqrt(2),
    ("inverse_sqrt", WARMUP + 30): 0.5,
    ("inverse_sqrt", TOTAL): 1 / math.sqrt(100),
    ("infinite_cosine", WARMUP + 295): 0.55 + 0.225,
    ("infinite_cosine", 600): 0.55,
    ("infinite_cosine", 850): 0.55,
    ("infinite_cosine", 925): math.sqrt(0.55 * 0.1),
    ("infinite_cosine", TOTAL): 0.1,
    ("infinite_inverse_sqrt", 600): 0.55,
    ("infinite_inverse_sqrt", WARMUP + 59): 1 - 0.45 * (1 / math.sqrt(2) - 1) / (1 / math.sqrt(11) - 1),
    ("infinite_inverse_sqrt", 851): 0.55 * (0.1 / 0.55) ** (1 / 150),
    ("infinite_inverse_sqrt", TOTAL): 0.1,
}


@pytest.mark.parametrize(("name", "step"), TABLE)
def test_values_at_the_boundaries(name: str, step: int) -> None:
    assert lr(replace(SPEC, name=name), step) == pytest.approx(TABLE[name, step], rel=1e-12)


def test_cosine_equals_transformers_cosine_with_a_minimum() -> None:
    expected = reference(lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, TOTAL, min_lr=MIN), TOTAL)
    assert lr_curve(SPEC, np.arange(TOTAL + 1)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosine_without_warm_up_equals_torchs_annealing() -> None:
    expected = reference(lambda o: CosineAnnealingLR(o, TOTAL, eta_min=MIN), TOTAL)
    curve = lr_curve(replace(SPEC, warmup_steps=0), np.arange(TOTAL + 1))
    assert curve == pytest.approx(expected, rel=1e-6)


def test_linear_without_warm_up_equals_torchs() -> None:
    expected = reference(lambda o: LinearLR(o, start_factor=1.0, end_factor=MIN, total_iters=TOTAL), TOTAL)
    curve = lr_curve(replace(SPEC, name="linear", warmup_steps=0), np.arange(TOTAL + 1))
    assert curve == pytest.approx(expected, rel=1e-9)


def test_constant_equals_transformers_constant_with_warm_up() -> None:
    expected = reference(lambda o: get_constant_schedule_with_warmup(o, WARMUP), 100)
    assert lr_curve(replace(SPEC, name="constant"), np.arange(101)) == pytest.approx(expected)


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("1-sqrt", "1-sqrt")])
def test_wsd_equals_transformers_wsd(ours: str, theirs: str) -> None:
    expected = reference(
        lambda o: get_wsd_schedule(
            o,
            num_warmup_steps=WARMUP,
            num_stable_steps=890,
            num_decay_steps=100,
            min_lr_ratio=MIN,
            decay_type=theirs,
        ),
        TOTAL,
    )
    curve = lr_curve(replace(SPEC, name="wsd", decay_shape=ours), np.arange(TOTAL + 1))
    # Theirs warms up from the minimum, ours from 0 as the paper's does.
    assert curve[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-9, abs=1e-12)


def test_inverse_sqrt_equals_transformers() -> None:
    expected = reference(lambda o: get_inverse_sqrt_schedule(o, WARMUP, timescale=10), 500)
    curve = lr_curve(replace(SPEC, name="inverse_sqrt", min_lr=0.0), np.arange(501))
    assert curve == pytest.approx(expected, rel=1e-9)


def test_legacy_cosine_equals_neox_annealing_written_out_step_by_step() -> None:
    def annealing(step: int) -> float:
        steps = min(step, TOTAL - WARMUP)
        if step <= WARMUP:
            return steps / WARMUP
        return max(MIN, (math.cos(math.pi * (steps - WARMUP) / TOTAL) + 1) / 2)

    expected = reference(lambda o: LambdaLR(o, annealing), TOTAL + 100)
    curve = lr_curve(replace(SPEC, name="cosine_neox"), np.arange(TOTAL + 101))
    assert curve == pytest.approx(expected, rel=1e-12)


def test_the_papers_cosine_meets_its_floor_at_239_billion_tokens() -> None:
    floor = landmarks(PAPER)["floor"]
    assert floor == 105_715
    assert floor * 2_260_992 / 1e9 == pytest.approx(239.0, abs=0.05)
    assert lr(PAPER, floor - 1) > PAPER.min_lr
    assert lr(PAPER, floor + 1) == PAPER.min_lr
    assert lr(PAPER, PAPER.total_steps) == PAPER.min_lr


def test_landmarks_name_the_turns_in_order() -> None:
    marks = landmarks(replace(SPEC, name="infinite_cosine"))
    assert list(marks.items()) == [
        ("start", 1),
        ("warm-up end", 10),
        ("cool-down end", 600),
        ("constant end", 850),
        ("end", 1000),
    ]
    assert "warm-up end" not in landmarks(replace(SPEC, warmup_steps=0))
    assert landmarks(replace(SPEC, name="wsd"))["decay start"] == 900
