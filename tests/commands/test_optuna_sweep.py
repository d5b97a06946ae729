"""Sweeps in which Optuna chooses the runs, for two objectives."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rewarm.commands import optuna_sweep
from rewarm.commands.arms import Swept
from rewarm.commands.begin import begin
from rewarm.commands.sweep_tables import pareto
from rewarm.config.command_line import parse
from rewarm.errors import UserError
from rewarm.storage import exclusive
from tests.training.killing import ROOT, TINY

SEARCH = ("sweep.jobs=1", "max_lr=tag(log, interval(1e-4, 1e-1))")


def trials(folder: Path) -> list[tuple[str, int]]:
    """Return the state of each trial of a study, and how many losses it was told."""
    with sqlite3.connect(folder / "optuna.db") as database:
        return database.execute(
            "select state, (select count(*) from trial_values v where v.trial_id = t.trial_id) from trials t"
        ).fetchall()


def sweep(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rewarm", "train", "-m", *TINY, f"run_dir={folder}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_study_goes_on_after_a_kill_and_several_commands_share_it(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs rewarm[optuna]")
    folder = tmp_path / "study"
    search = (*SEARCH, "sweep.trials=3")
    with sweep(folder, *search) as killed:
        assert killed.stdout is not None
        while "tokens: loss" not in (line := killed.stdout.readline()):
            assert line
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    (cut,) = folder.glob("max_lr*")
    with exclusive(cut / ".lock", wait=True):  # its run sees that the sweep is gone
        assert [state for state, _ in trials(folder)] == ["RUNNING"]
    both = [sweep(folder, *search), sweep(folder, *search)]
    for command in both:
        output, _ = command.communicate()
        assert command.returncode == 0, output
    states = [state for state, _ in trials(folder)]
    assert sorted(states) == ["COMPLETE"] * 3 + ["PRUNED"]
    assert all(values == 2 for state, values in trials(folder) if state == "COMPLETE")
    assert (cut / "summary.json").exists(), "what was interrupted is done first"
    again = sweep(folder, *search)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert len(trials(folder)) == len(states), "a study that has all its trials gets no more"
    table = output.rpartition("Pareto front: ")[2]
    assert re.match(r"\d of \d runs +upstream +downstream\nmax_lr=", table)


def run(folder: Path, name: str, upstream: float | None, downstream: float) -> None:
    (folder / name).mkdir(parents=True)
    sides = (("upstream", upstream), ("downstream", downstream))
    losses = {side: {"start": None, "peak": None, "final": final} for side, final in sides}
    (folder / name / "summary.json").write_text(json.dumps(losses))


def test_the_front_holds_what_no_other_run_beats(tmp_path: Path) -> None:
    for name, upstream, downstream in (
        ("a,seed=0", 2.0, 3.0),
        ("b,seed=0", 3.0, 2.0),
        ("worse,seed=0", 3.0, 3.0),
        ("same,seed=0", 2.0, 3.0),
        ("diverged,seed=0", None, 1.0),
    ):
        run(tmp_path, name, upstream, downstream)
    head, *rows = pareto(tmp_path).split("\n")[1:-1]
    assert head.startswith("Pareto front: 3 of 4 runs")
    assert [row.split()[0] for row in rows] == ["a,seed=0", "same,seed=0", "b,seed=0"]


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_sweep.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'rewarm\[optuna\]'"):
        begin("train", ["-m", *SEARCH, "sweep.trials=3"])


def test_values_that_are_chosen_again_while_they_run_are_run_once(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs rewarm[optuna]")
    asked = Swept.of(parse(["-m", *TINY, "max_lr=choice(1e-3)", f"run_dir={tmp_path}"]))
    with closing(optuna_sweep.Study(asked, 2)) as study:
        job = study.next()
        assert job is not None
        assert study.next() is None
        run(tmp_path, job.name, 2.0, 3.0)
        study.done(job, 0)
    assert trials(tmp_path) == [("COMPLETE", 2)] * 2


@pytest.mark.parametrize("asked", [["dry_run=true"], ["--cfg", "job"]])
def test_what_is_only_asked_about_begins_no_study(
    tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin("train", ["-m", *TINY, *SEARCH, "sweep.trials=7", f"run_dir={tmp_path / 'study'}", *asked])
    said = capsys.readouterr().out
    assert "max_lr=0.0001" in said
    assert ("7 runs like this one" in said) == (asked == ["dry_run=true"])
    assert not (tmp_path / "study").exists()
