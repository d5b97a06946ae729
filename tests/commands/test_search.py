"""`rewarm search`, on trainings whose losses follow a known law, so that the best of all is known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm.commands.arms import Arm
from rewarm.commands.leaving import planned
from rewarm.commands.search import answer, known, question, space, taken_in
from rewarm.commands.searching import RECORD, Searching
from rewarm.config.schema import SIDES
from rewarm.errors import UserError
from rewarm.forecast.options import Options
from rewarm.forecast.search import FEWEST
from rewarm.runs.run import open_run
from tests.commands.law_runs import placed, write

GOAL = Options(paths=(), weights=(3.0, 1.0))


def pool(folder: Path) -> list[Arm]:
    return placed(folder)


def value(arm: Arm) -> float:
    upstream, downstream = (float(open_run(arm.folder).loss(side)[1][-1]) for side in SIDES)
    return 3 * upstream + downstream


def drive(source: Searching, code: Callable[[Arm], int] = lambda arm: 0, lost: float = 0.0) -> list[str]:  # noqa: ARG005
    """Do what a search asks for, one training after the other; return their names."""
    names = []
    while (job := source.next()) is not None:
        arm = next(arm for arm in source._space if arm.name == job.name)
        ended = code(arm)
        if ended == 0:
            write(arm, lost=lost)
        source.done(job, ended)
        names.append(job.name)
    return names


def searching(folder: Path, tokens: float = 1e9, goal: Options = GOAL) -> Searching:
    folder.mkdir(exist_ok=True)
    return Searching(pool(folder), round(tokens), goal, folder)


def test_it_finds_the_best_of_all_and_stops_when_nothing_is_left_to_gain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for arm in pool(tmp_path / "all"):
        write(arm)
    least = min(pool(tmp_path / "all"), key=value).name
    source = searching(tmp_path / "search")
    ran = drive(source)
    assert FEWEST <= len(ran) < len(pool(tmp_path)), "it need not try all"
    assert source.over == "nothing else in the space is expected to gain 0.0005 nats"
    best = source.best()
    assert best is not None
    assert best[0].name == least
    assert "expected to gain" in caplog.text
    said = answer(source, space(["max_lr=1e-4,2e-4"]), GOAL)
    assert f"Recipe (least 3 upstream + 1 downstream loss): {best[0].name}: upstream " in said
    assert "  rewarm train budget=400k" in said

    # Predicted and got; the same command has nothing to do; what was said is not forgotten.
    for name in set(ran[FEWEST:]):
        arm = next(arm for arm in pool(tmp_path / "search") if arm.name == name)
        for side, loss in source.proposals[name].predicted.items():
            assert loss == pytest.approx((open_run(arm.folder).summary or {})[side]["final"], rel=0.03)
    again = searching(tmp_path / "search")
    assert drive(again) == []
    assert again.table() == source.table()
    (tmp_path / "search" / RECORD).write_text("{")
    with pytest.raises(UserError, match=r"search\.json: is damaged .*; remove it, only what was predicted is lost"):
        searching(tmp_path / "search")


def test_tokens_are_not_overspent_and_more_may_be_added(tmp_path: Path) -> None:
    [each] = {planned(arm.config).tokens for arm in pool(tmp_path)}
    source = searching(tmp_path / "search", 4.5 * each)
    assert len(drive(source)) == 4
    assert (source.over, source.spent) == ("the tokens are spent", 4 * each)
    assert len(drive(searching(tmp_path / "search", 5.5 * each))) == 1, "it goes on where it was"


def test_earlier_runs_are_taken_in_where_they_fit(tmp_path: Path) -> None:
    earlier = placed(tmp_path / "earlier")[::2]
    for arm in earlier:
        write(arm)
    space_ = pool(tmp_path / "search")
    found = taken_in([tmp_path / "earlier"], space_)
    assert {arm.name for arm in found} == {arm.name for arm in earlier}
    (tmp_path / "search").mkdir()
    source = Searching(space_, 10**9, GOAL, tmp_path / "search", found)
    ran = drive(source)
    assert not set(ran) & {arm.name for arm in earlier}, "none is run again"
    assert len(ran) <= 3, "what they tell is known"
    assert source.spent == len(ran) * planned(space_[0].config).tokens, "they cost nothing"
    assert source.best() is not None
    assert source.table().count("earlier") == 7
    other = replace(space_[0].config, optimizer=replace(space_[0].config.optimizer, beta2=0.9))
    with pytest.raises(UserError, match=r"no run there fits the search \(they differ in .*optimizer.beta2"):
        taken_in([tmp_path / "earlier"], [replace(space_[0], config=other)])


def test_a_training_that_fails_tells_that_it_is_none(tmp_path: Path) -> None:
    source = searching(tmp_path / "search")
    ran = drive(source, lambda arm: 1 if arm.config.max_lr > 2e-3 else 0)
    failed = [name for name in ran if "0.0032" in name or "0.0064" in name]
    assert failed
    assert len(ran) == len(set(ran)), "none is tried twice"
    assert source.best() is not None
    assert source.table().count("failed") == len(failed)
    hot = searching(tmp_path / "hot")
    ran = drive(hot, lambda arm: 3 if arm.config.max_lr > 1e-3 else 0)
    assert sum("0.0064" in name or "0.0032" in name or "0.0016" in name for name in ran) <= 2, (
        "none as hot comes again"
    )
    wrong = searching(tmp_path / "wrong")
    assert len(drive(wrong, lambda _: 2)) == 3
    assert wrong.over == "the first 3 trainings failed"
    stopped = searching(tmp_path / "stopped")
    assert len(drive(stopped, lambda _: 143)) == 1
    assert stopped.over == "stopped by a signal; the same command goes on"


def test_where_nothing_keeps_to_the_limit_the_least_that_was_lost_is_said(tmp_path: Path) -> None:
    goal = Options(paths=(), max_forgetting=1e-6)
    source = searching(tmp_path / "search", goal=goal)
    drive(source, lost=0.3)
    assert source.best() is None
    said = answer(source, space(["max_lr=1e-4,2e-4"]), goal)
    assert "no training keeps to the limit of 1e-06 nats; the least was lost by max_lr=" in said
    assert "more replay or a lower max_lr lowers it" in said


def test_the_space_is_what_has_several_values_else_the_usual_one() -> None:
    swept = space(["max_lr=interval(1e-4,3e-3)", "replay=0"])
    [lrs] = [list(o.sweep_string_iterator()) for o in swept.several]
    assert (len(lrs), float(lrs[0]), float(lrs[-1])) == (9, 1e-4, 3e-3)
    usual = {o.key_or_group: len(list(o.sweep_string_iterator())) for o in space([]).several}
    assert usual == {"schedule": 2, "replay": 4, "max_lr": 8}
    assert {o.key_or_group for o in space(["max_lr=1e-3"]).several} == {"schedule", "replay"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["weights=1,1"], "search: say how many tokens may be trained on in all"),
        (["tokens=1M"], "search: say what is to be found: max_forgetting=0.05"),
        (["tokens=many", "weights=1,1"], "tokens=many: "),
        (["tokens=1M", "weights=0,0"], "weights=0,0: one of the two must be above 0"),
        (["tokens=1M", "max_forgetting=-1"], "max_forgetting=-1: must be at least 0"),
        (["tokens=1M", "weights=1,1", "max_lr=interval(3e-3,1e-3)"], "the interval ends before it begins"),
        (["tokens=1M", "weights=1,1", "max_lr=1", "schedule=cosine", "replay=0"], "there is nothing to choose"),
        (["tokens=1M", "weights=1,1", "max_lr=range(1,300)"], "search: 299 trainings to choose from, at most 256"),
        (["tokens=1M", "weights=1,1", "maxlr=1,2"], "maxlr"),
        (["tokens=1M", "weights=1,1", "train.batch_size=8,16"], "train.batch_size: has several values, and a search"),
    ],
)
def test_mistakes_are_answered_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        known(space(question(words)[1]).arms())
    assert says in str(error.value)
