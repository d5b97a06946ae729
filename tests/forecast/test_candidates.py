import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.candidates import USUAL, candidates, tokens_text
from rewarm.forecast.options import Options
from rewarm.schedules import ScheduleSpec, lr_curve
from tests.forecast.synthetic import FINAL_LR, TOKENS_PER_STEP, arms, curve, trajectory

BUDGET = round(2000 * TOKENS_PER_STEP)


def _asked(*, search: bool = False, **given: object) -> list:
    return candidates(Options(paths=(), **given), arms(), search=search)


def test_a_candidate_has_the_lr_that_training_would_use() -> None:
    [found] = _asked(schedule=("wsd",), max_lr=(4e-4,), warmup=(0.05,), shape={"decay_fraction": "0.3"})
    spec = ScheduleSpec("wsd", 4e-4, 4e-5, 100, 2000, decay_fraction=0.3)
    assert found.trajectory.lr == pytest.approx(lr_curve(spec, np.arange(1, 2001)))
    assert found.trajectory.start_lr == FINAL_LR
    assert found.trajectory.warmup_steps == 100
    assert found.beyond == ()


def test_lists_make_every_combination_and_labels_tell_them_apart() -> None:
    found = _asked(schedule=("cosine", "wsd"), max_lr=(2e-4, 4e-4), replay=(0.0, 0.1))
    labels = [c.label for c in found]
    assert len(set(labels)) == 8
    assert labels[0] == "cosine max_lr=0.0002 replay=0"


def test_a_budget_may_end_before_the_horizon() -> None:
    [found] = _asked(schedule=("cosine",), max_lr=(3e-4,), budget=(BUDGET // 2,), horizon=(BUDGET,))
    assert found.steps == 1000
    assert found.trajectory.lr[-1] > 1.2e-4


def test_no_rewarm_starts_where_pre_training_ended() -> None:
    [found] = _asked(schedule=("no_rewarm",), max_lr=(6e-4,))
    assert found.settings.max_lr == FINAL_LR
    assert found.settings.warmup == 0
    assert found.trajectory.lr[-1] == pytest.approx(FINAL_LR / 100)


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"max_lr": (1e-3,)}, "max_lr 0.001 outside 3e-05..0.0006"),
        ({"budget": (BUDGET * 3,)}, "3 times the tokens seen"),
        ({"replay": (0.5,)}, "replay 0.5 outside 0..0"),
    ],
)
def test_what_lies_outside_the_runs_is_said(given: dict[str, object], phrase: str) -> None:
    [found] = _asked(**given)
    assert found.beyond == (phrase,)


def test_a_search_stays_inside_what_was_measured() -> None:
    found = _asked(search=True)
    assert {c.settings.schedule for c in found} == set(USUAL)
    assert not any(c.beyond for c in found)
    assert min(c.settings.max_lr for c in found) == pytest.approx(3e-5)
    assert max(c.settings.max_lr for c in found) == pytest.approx(6e-4)


def test_an_unfinished_run_covers_only_what_it_has_measured() -> None:
    whole = curve("a", trajectory("cosine", 3e-4))
    part = {side: (steps[:30], loss[:30]) for side, (steps, loss) in whole.losses.items()}
    half = type(whole)("a", "a", whole.trajectory, part, 2000)
    [found] = candidates(Options(paths=(), budget=(BUDGET,)), [half], search=False)
    assert "times the tokens seen" in found.beyond[0]


def test_a_shape_that_no_schedule_reads_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.decay_fraction=0.3: has no effect with schedule=cosine"):
        _asked(schedule=("cosine",), shape={"decay_fraction": "0.3"})


def test_an_impossible_shape_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(UserError, match="decay_fraction=3"):
        _asked(schedule=("wsd",), shape={"decay_fraction": "3"})


def test_tokens_are_written_as_people_write_them() -> None:
    assert [tokens_text(n) for n in (2048, 2_048_000, 296_860_000_000, 5e12)] == ["2.05k", "2.05M", "297B", "5T"]
