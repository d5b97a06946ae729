"""Sweeps whose runs begin alike: what they have in common is trained once, and each is the run made alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rewarm.commands.arms import Arm, Swept
from rewarm.commands.begin import begin
from rewarm.commands.report import report
from rewarm.commands.shared import Arms, left_of, share
from rewarm.config.command_line import parse
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.model.shape import PAYS_FROM, run_flops
from rewarm.report.arms import load
from rewarm.report.findings import studies_of
from rewarm.runs.checkpoint import folder_of, steps
from rewarm.runs.run import open_run
from rewarm.training.run import run as train
from tests.training.killing import TINY, assert_same

DECAYS = (
    *TINY,
    *("budget=2560", "schedule=wsd", "schedule.decay_fraction=0.1,0.3,0.5", "warmup=0"),  # 20 steps
    *("checkpoint.every=7", "max_lr=1e-3"),
)


def asked(folder: Path, *words: str) -> list[Arm]:
    return Swept.of(parse(["-m", *words, f"run_dir={folder}"])).arms()


def finish(source: Arms) -> list[tuple[str, int]]:
    """Run what a source gives, one after the other; return each with the step from which it was trained."""
    done = []
    while (job := source.next()) is not None:
        arm = next(arm for arm in source.all() if arm.name == job.name)
        train(begun_with(arm))
        forked = open_run(arm.folder).manifest.forked
        done.append((arm.name, forked.step if forked else 0))
        source.done(job, 0)
    return done


def begun_with(arm: Arm) -> Config:
    """Return the config that the command of an arm asks for."""
    found = begin("train", arm.arguments)
    assert found is not None
    assert found.config == arm.config
    return found.config


def test_the_runs_of_a_sweep_are_those_made_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "the sweep"
    words = [word.replace("0.1,0.3,0.5", "0.1,0.5") for word in DECAYS]
    begin("train", ["-m", *words, f"run_dir='{folder}'", "sweep.jobs=1"])
    assert "next: rewarm report" in capsys.readouterr().out
    forked = {}
    for arm in asked(tmp_path / "alone", *words):
        train(arm.config)
        made = open_run(folder / arm.name)
        assert_same(arm.folder, made.path)
        forked[arm.config.schedule.decay_fraction] = made.manifest.forked and made.manifest.forked.step
    assert forked == {0.1: None, 0.5: 10}
    report([str(folder)])
    tree = (folder / "report" / "summary.md").read_text().split("What arms have in common was trained once: ")[1]
    assert tree.splitlines()[0] == "3.84k tokens for 5.12k."
    assert tree.splitlines()[2:4] == [
        "- schedule.decay_fraction=0.1",
        "  - schedule.decay_fraction=0.5, from 1.28k tokens on",
    ]
    [study] = studies_of(load([folder]))
    rates = next(chart for chart in study.charts if chart.id == "learning-rates")
    assert [line.tokens[0] for line in rates.lines] == [128, 1280], "the trunk is drawn once"


def test_arms_that_come_later_use_what_is_there_or_are_made_anew(tmp_path: Path) -> None:
    words = [word for word in DECAYS if "decay_fraction" not in word]
    first = asked(tmp_path, *words, "schedule.decay_fraction=0.1,0.3")
    assert [step for _, step in finish(Arms(left_of(first, shares=True)))] == [0, 14]
    more = [*words, "schedule.decay_fraction=0.1,0.3,0.4,0.5"]
    later = left_of(asked(tmp_path, *more), shares=True)
    assert [arm.config.schedule.decay_fraction for arm in later] == [0.4, 0.5], "those that are finished are left out"
    assert {arm.config.fork.run for arm in later} == {str(first[0].folder), str(later[0].folder)}
    # The finished run has kept its checkpoints of steps 14 and 20 alone: what ends its likeness at step 12 has none.
    assert finish(Arms(later)) == [(later[0].name, 0), (later[1].name, 10)]


def test_a_run_waits_for_the_step_where_it_leaves_and_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk, late, early = share(asked(tmp_path, *DECAYS))
    assert trunk.config.fork.steps == [10, 14]
    assert [arm.begins and arm.begins.step for arm in (trunk, late, early)] == [None, 14, 10]
    source = Arms([trunk, late, early])
    assert source.next() == trunk
    assert source.next() is None
    (folder_of(trunk.folder / "checkpoints", 10)).mkdir(parents=True)
    (folder_of(trunk.folder / "checkpoints", 10) / "manifest.json").write_text("{}")
    assert source.next() == early
    assert source.next() is None
    with caplog.at_level(logging.WARNING):
        source.done(trunk, 3)
        assert source.next() == late
    assert "did not get to step 14" in caplog.text
    assert source.next() is None


def test_a_beginning_that_cannot_be_had_is_said_and_the_run_made_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk, late, _ = share(asked(tmp_path, *DECAYS))
    with caplog.at_level(logging.INFO):
        train(late.config)
    assert f"{trunk.folder}: holds no run" in caplog.text
    assert open_run(late.folder).manifest.forked is None
    assert steps(late.folder / "checkpoints") == [14, 20]


def test_what_is_not_worth_the_wait_or_not_alike_is_not_shared(tmp_path: Path) -> None:
    [longer, run] = share(asked(tmp_path, *TINY, "schedule=constant", "warmup=0", "budget=2560,5120"))
    assert run.begins is not None
    assert (run.begins.name, run.begins.step) == (longer.name, 20), "all of it"
    almost = asked(tmp_path, *TINY, "schedule=wsd", "warmup=0", "budget=12800", "schedule.decay_fraction=0.98,0.5")
    assert not any(arm.begins for arm in share(almost)), "two of a hundred steps"
    differ = asked(tmp_path, *TINY, "schedule=constant", "warmup=0", "replay=0,0.1", "seed=0,1")
    assert not any(arm.begins for arm in share(differ))
    # One that is long enough to be compiled has other last digits than one that is not.
    [short, long] = asked(tmp_path, "schedule=constant", "warmup=0", "budget=4M,40M", "init=scratch")
    flops = [run_flops(arm.config, make_plan(arm.config)) or 0 for arm in (short, long)]
    assert flops[0] < PAYS_FROM["cpu"] < flops[1]
    assert not any(arm.begins for arm in share([short, long]))


def test_the_tree_is_told_before_it_is_paid_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin("train", ["-m", "experiment=decay", "dry_run=true", f"run_dir={tmp_path / 'x'}"])
    said = capsys.readouterr().out
    assert said.count("\n  schedule.decay_fraction=") == 14
    assert "15 runs, 30,720,000 tokens alone and 8,396,800 with what they share trained once (3.66 times" in said
    assert "5 checkpoints are kept" in said
    begin("train", ["-m", "experiment=decay", "dry_run=true", "sweep.share=false", f"run_dir={tmp_path / 'x'}"])
    assert "15 runs, 30,720,000 tokens\n" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("word", ["fork.steps=[0]", "fork.run=", "sweep.share=perhaps"])
def test_mistakes_in_what_is_shared_are_answered_in_one_line(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        begin("train", [word, "dry_run=true"])
