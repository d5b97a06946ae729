"""Sweeps that go through Hydra's other ways: Optuna's choices with two objectives, and jobs that submitit starts."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from rewarm import study
from rewarm.errors import UserError
from rewarm.sweeps import pareto
from tests.training.killing import TINY, Command, Fault

SEARCH = ("hydra/sweeper=optuna", "hydra/launcher=basic", "max_lr=tag(log, interval(1e-4, 1e-1))")


def trials(folder: Path) -> list[tuple[str, int]]:
    """Return the state of each trial of a study, and how many losses it was told."""
    with sqlite3.connect(folder / "optuna.db") as database:
        return database.execute(
            "select state, (select count(*) from trial_values v where v.trial_id = t.trial_id) from trials t"
        ).fetchall()


def sweep(folder: Path, *overrides: str, fault: Fault | None = None) -> Command:
    return Command(("train", "-m", *TINY, f"run_dir={folder}", *overrides), folder.with_suffix(".out"), fault)


def test_a_study_goes_on_after_a_kill_and_several_commands_share_it(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs rewarm[optuna]")
    folder = tmp_path / "study"
    search = (*SEARCH, "hydra.sweeper.n_trials=3")
    # The second trial's run is killed after a checkpoint of its own.
    killed = sweep(folder, *search, fault=Fault(str(folder / "max_lr"), 60, "kill"))
    assert killed.wait() == -signal.SIGKILL, killed.output
    assert [state for state, _ in trials(folder)][-1] == "RUNNING"
    cut = [path for path in folder.glob("max_lr*") if not (path / "summary.json").exists()]
    both = [sweep(folder, *search), sweep(folder, *search)]
    for command in both:
        assert command.wait() == 0, command.output
    states = [state for state, _ in trials(folder)]
    assert 3 <= states.count("COMPLETE") <= 4, "each may have begun the last one"
    assert {state for state, _ in trials(folder)} <= {"COMPLETE", "PRUNED"}
    assert all(values == 2 for state, values in trials(folder) if state == "COMPLETE")
    for path in cut:
        assert (path / "summary.json").exists(), "what was interrupted is done first"
    again = sweep(folder, *search)
    assert again.wait() == 0, again.output
    assert len(trials(folder)) == len(states), "a study that has all its trials gets no more"
    table = again.output.rpartition("Pareto front: ")[2]
    assert re.match(r"\d of \d runs +upstream +downstream\nmax_lr=", table)


def run(folder: Path, name: str, upstream: float | None, downstream: float) -> None:
    (folder / name).mkdir(parents=True)
    losses = {"upstream": {"final": upstream}, "downstream": {"final": downstream}}
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
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'rewarm\[optuna\]'"):
        study.prepare([])


def test_submitit_runs_a_sweep_as_jobs(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs rewarm[slurm]")
    folder = tmp_path / "sweep"
    command = sweep(folder, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=0,1")
    assert command.wait() == 0, command.output
    assert sorted(path.parent.name for path in folder.glob("*/summary.json")) == ["seed=0", "seed=1"]
    assert list((folder / ".submitit").iterdir()), "the jobs went through submitit"
