"""`sweep.stop=forecast`: who cannot win is left early, saved, and goes on where that is asked for."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm.commands.arms import Arm
from rewarm.commands.launch import Begins, here
from rewarm.commands.leaving import Leaving
from rewarm.commands.report import report
from rewarm.commands.shared import left_of
from rewarm.commands.sweep_tables import finished_runs, table
from rewarm.config.sweep_schema import SweepConfig
from rewarm.errors import LEFT, DataError, UserError
from rewarm.runs.run import open_run
from rewarm.runs.stopped import STOPPED
from tests.commands.law_runs import One, placed, total, write
from tests.conftest import make_config

OPTIONS = SweepConfig(stop="forecast", weights=[1.0, 1.0])


@pytest.fixture
def sweep(tmp_path: Path) -> list[Arm]:
    """Return 14 arms, twelve finished, one half done, one not begun; both left are far from winning."""
    found = placed(tmp_path / "sweep")
    for arm in found:
        write(arm)
    ranked = sorted(found, key=total)
    poor = [arm for arm in ranked[3:] if arm.config.max_lr not in (1e-4, 6.4e-3)][-2:]
    for arm in poor:
        shutil.rmtree(arm.folder)
    write(poor[0], 0.5)
    return [*(arm for arm in found if arm not in poor), *poor]


def test_who_cannot_win_is_left_and_not_begun(sweep: list[Arm], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    *_, begun, waiting = sweep
    source = Leaving([begun, waiting], sweep, OPTIONS)
    assert set(source.to_leave()) == {begun.name, waiting.name}
    assert source.next() is None, "neither is begun"
    assert f"{waiting.name}: not begun; cannot win: upstream " in caplog.text
    source.done(begun, LEFT)
    stopped = open_run(begun.folder).stopped
    assert stopped is not None
    assert stopped.step == open_run(begun.folder).trained
    assert stopped.reason.better in {arm.name for arm in sweep[:12]}
    better = min(map(total, sweep[:12]))
    assert sum(stopped.reason.measured.values()) == better < sum(stopped.reason.predicted.values())

    # What the table says, and what the same command does.
    folder = begun.folder.parent
    assert finished_runs(folder) == (sorted(arm.folder for arm in sweep[:12]), [])
    assert f"{begun.name}" in table(folder)
    assert f"left at step {stopped.step}; cannot win: upstream" in table(folder)
    assert left_of(sweep, shares=False, leaves=True) == [waiting]
    assert f"{begun.name}: left at step {stopped.step}; cannot win" in caplog.text
    assert left_of(sweep, shares=False) == [begun, waiting], "sweep.stop=none goes on with it"
    write(begun, 0.8)
    assert open_run(begun.folder).stopped is None, "it has gone on"


def test_it_never_counts_as_finished(sweep: list[Arm], capsys: pytest.CaptureFixture[str]) -> None:
    *_, begun, waiting = sweep
    source = Leaving([begun, waiting], sweep, OPTIONS)
    source.done(begun, LEFT)
    report([str(begun.folder.parent)])
    said = capsys.readouterr().out
    assert "Left early by sweep.stop=forecast, as they could not win, and not compared: " in said
    assert "next: rewarm forecast" in said or "seeds=3" in said, "the next command is not to go on with it"
    (begun.folder / STOPPED).write_text('{"step": 3}')
    with pytest.raises(DataError, match=r"stopped\.json: is damaged .*; remove it, and the run counts"):
        _ = open_run(begun.folder).stopped


def test_an_arm_that_others_wait_for_or_that_the_law_does_not_know_is_kept(sweep: list[Arm]) -> None:
    *_, begun, waiting = sweep
    awaited = replace(waiting, begins=Begins(begun.name, begun.folder, 400))
    assert set(Leaving([begun, awaited], sweep, OPTIONS).to_leave()) == {waiting.name}
    other = replace(waiting, config=replace(waiting.config, optimizer=replace(waiting.config.optimizer, beta2=0.99)))
    assert set(Leaving([begun, other], [*sweep[:-1], other], OPTIONS).to_leave()) == {begun.name}
    assert Leaving([begun, waiting], [*sweep[2:]], OPTIONS).to_leave() == [], "too few have finished"


def test_a_run_that_is_left_is_saved_and_is_no_failure(tmp_path: Path) -> None:

    source = One(tmp_path / "left")
    ended = here(source, SweepConfig(jobs=1))
    assert (ended.error, ended.failed, source.codes) == (None, (), [LEFT]), "it is no failure"
    run = open_run(source.job.folder)
    assert 0 < run.checkpoints[-1] < run.plan.steps


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.weights=[1,1]"], "sweep.weights=[1.0, 1.0]: has no effect without sweep.stop=forecast"),
        (["sweep.max_forgetting=0.1"], "sweep.max_forgetting=0.1: has no effect without sweep.stop=forecast"),
        (["sweep.stop=forecast", "sweep.weights=[1]"], "sweep.weights=[1.0]: takes two numbers"),
        (["sweep.stop=forecast", "sweep.weights=[0,0]"], "sweep.weights=[0.0, 0.0]: takes two numbers"),
        (["sweep.stop=forecast", "sweep.trials=3"], "sweep.stop=forecast: does not go with sweep.trials=3"),
        (["sweep.stop=asha"], "sweep.stop=asha: unknown choice (choices: forecast, none)"),
    ],
)
def test_mistakes_are_answered_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        make_config(*words)
    assert says in str(error.value)
