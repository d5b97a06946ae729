from dataclasses import replace

import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.candidates import USUAL, candidates
from rewarm.forecast.coverage import fallen
from rewarm.forecast.options import Options
from rewarm.schedules import ScheduleSpec, lr_curve
from tests.conftest import make_config
from tests.forecast.synthetic import FINAL_LR, TOKENS_PER_STEP, arms, curve, trajectory

BUDGET = round(2000 * TOKENS_PER_STEP)


def _asked(*, search: bool = False, **given: object) -> list:
    return candidates(Options(paths=(), **given), arms(), search=search)


def test_a_candidate_has_the_lr_that_training_would_use() -> None:
    [found] = _asked(schedule=("wsd",), max_lr=(4e-4,), warmup=(0.05,), shape={"decay_fraction": "0.2"})
    spec = ScheduleSpec("wsd", 4e-4, 4e-5, 100, 2000, decay_fraction=0.2)
    assert found.trajectory.lr == pytest.approx(lr_curve(spec, np.arange(1, 2001)))
    assert found.trajectory.start_lr == FINAL_LR
    assert found.trajectory.warmup_steps == 100
    assert found.settings.shape == (("decay_fraction", 0.2),)


def test_lists_make_every_combination_and_labels_tell_them_apart() -> None:
    found = _asked(schedule=("cosine", "wsd"), max_lr=(2e-4, 4e-4), replay=(0.0, 0.1))
    labels = [c.label for c in found]
    assert len(set(labels)) == 8
    assert labels[0] == "cosine max_lr=0.0002 replay=0"


def test_a_training_may_be_stopped_before_the_end_of_its_budget() -> None:
    [found] = _asked(schedule=("cosine",), max_lr=(3e-4,), budget=(BUDGET,), stop=(BUDGET // 2,))
    assert found.steps == 1000
    assert found.trajectory.lr[-1] > 1.2e-4
    [given] = _asked(schedule=("cosine",), max_lr=(3e-4,), stop=(BUDGET // 2,))
    assert given.settings == found.settings


def test_no_rewarm_starts_where_pre_training_ended() -> None:
    [found] = _asked(schedule=("no_rewarm",), max_lr=(6e-4,))
    assert found.settings.max_lr == FINAL_LR
    assert found.settings.warmup == 0
    assert found.trajectory.lr[-1] == pytest.approx(FINAL_LR / 100)


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"max_lr": (1e-3,)}, "max_lr 0.001 outside 0.00015..0.0006 of the runs of its shape"),
        ({"budget": (BUDGET * 3,)}, "3 times the tokens seen"),
        ({"replay": (0.5,)}, "replay 0.5 outside 0..0"),
    ],
)
def test_what_lies_outside_the_runs_is_said(given: dict[str, object], phrase: str) -> None:
    [found] = _asked(**given)
    assert found.beyond == (phrase,)


def test_a_search_covers_what_was_measured() -> None:
    found = _asked(search=True)
    assert {c.settings.schedule for c in found} == set(USUAL)
    inside = [c.settings for c in found if not c.beyond]
    assert {s.schedule for s in inside} == {"constant", "cosine", "wsd"}
    assert min(s.max_lr for s in inside if s.schedule == "cosine") == pytest.approx(1.5e-4)
    assert {s.max_lr for s in inside if s.schedule == "wsd"} == {3e-4}


def test_a_search_looks_at_the_schedules_that_runs_had_as_they_had_them() -> None:
    asked = ("schedule=wsd", "schedule.decay_fraction=0.4", "warmup=0.03", "budget=2M", "stop=1.6M")
    runs = [
        replace(curve(f"{lr}", trajectory("wsd", lr)), config=make_config(*asked, f"max_lr={lr}"))
        for lr in (1e-4, 4e-4)
    ]
    found = candidates(Options(paths=()), runs, search=True)
    assert {c.settings.schedule for c in found} == {"wsd"}
    assert {c.settings.shape for c in found} == {(("decay_fraction", 0.4),)}
    assert {c.settings.warmup for c in found} == {0.03}
    assert {1e-4, 4e-4} < {c.settings.max_lr for c in found}
    assert all(c.settings.stop == pytest.approx(0.8 * c.settings.budget) for c in found)
    assert all(fallen(c.trajectory.lr) == pytest.approx(0.45, abs=0.01) for c in found)


def test_an_unfinished_run_covers_only_what_it_has_measured() -> None:
    whole = curve("a", trajectory("cosine", 3e-4))
    part = {side: (steps[:30], loss[:30]) for side, (steps, loss) in whole.losses.items()}
    half = type(whole)("a", "a", whole.trajectory, part, 2000)
    [found] = candidates(Options(paths=(), budget=(BUDGET,)), [half], search=False)
    assert found.withheld is not None
    assert "its LR falls by 90%" in found.withheld


def test_a_shape_that_no_schedule_reads_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.decay_fraction=0.3: has no effect with schedule=cosine"):
        _asked(schedule=("cosine",), shape={"decay_fraction": "0.3"})


def test_an_impossible_shape_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(UserError, match="decay_fraction=3"):
        _asked(schedule=("wsd",), shape={"decay_fraction": "3"})
