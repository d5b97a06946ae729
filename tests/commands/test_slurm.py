"""The SLURM script: with a stand-in for `scontrol` everywhere, and on a real cluster where SLURM is installed.

A stand-in for `rewarm` ends as a run does that a signal ends saved.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewarm.commands import launch
from rewarm.commands import slurm as slurm_module
from rewarm.commands.launch import Begins, Source
from rewarm.config.sweep_schema import SlurmConfig, SweepConfig
from rewarm.errors import LEFT, UserError
from rewarm.runs.run import find_runs, open_run
from tests.commands.law_runs import One
from tests.commands.slurm import cluster
from tests.conftest import ROOT
from tests.training.killing import TINY

RUN = """#!/usr/bin/env bash
trap 'exit 138' USR1
trap 'exit 143' TERM
echo "$@" > arguments
mkfifo never 2>/dev/null
echo "$SLURM_JOB_ID" > ready
read -r end < "$END"
[ "$end" = wait ] || exit "$end"
while :; do read -r -t 1 < never || true; done
"""
"""Says that it has started through the pipe `ready`, reads how to end from the pipe or file that END names."""


def commands(folder: Path, **scripts: str) -> None:
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    os.mkfifo(folder / "ready")


def read(pipe: Path) -> str:
    """Return the line that the other end writes into a pipe."""
    return subprocess.run(["head", "-n1", pipe], capture_output=True, text=True, check=True, timeout=240).stdout


def start(folder: Path, end: str, *arguments: str) -> subprocess.Popen[bytes]:
    commands(folder, rewarm=RUN, scontrol='#!/bin/sh\necho "$@" > requeued\n')
    (folder / "end").write_text(f"{end}\n")
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "END": "end"}
    return subprocess.Popen(["bash", str(ROOT / "scripts/slurm"), *arguments], cwd=folder, env=environment)


@pytest.mark.parametrize(("number", "code", "requeued"), [(signal.SIGUSR1, 138, True), (signal.SIGTERM, 143, False)])
def test_a_signal_reaches_the_run(tmp_path: Path, number: int, code: int, requeued: bool) -> None:  # noqa: FBT001
    with start(tmp_path, "wait", "seed=1") as job:
        assert read(tmp_path / "ready") == "17\n"
        job.send_signal(number)
        assert job.wait() == code
    assert (tmp_path / "requeued").exists() == requeued
    assert (tmp_path / "arguments").read_text() == "train seed=1 run_dir=runs/slurm-17\n"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, False), (75, True)])
def test_only_what_can_go_on_is_queued_again(tmp_path: Path, code: int, requeued: bool) -> None:  # noqa: FBT001
    with start(tmp_path, str(code), "run_dir=x") as job:
        read(tmp_path / "ready")
        assert job.wait() == code
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert (tmp_path / "arguments").read_text() == "train run_dir=x\n"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with cluster() as environment:
        yield environment


class Job:
    """`sbatch scripts/slurm` on a node without GPUs, with a stand-in for the run."""

    def __init__(self, folder: Path, slurm: dict[str, str]) -> None:
        commands(folder, rewarm=RUN)
        os.mkfifo(folder / "end")
        self._folder, self._environment = folder, slurm | {"PATH": f"{folder}:{slurm['PATH']}", "END": "end"}
        options = ("--parsable", "--gpus-per-task=0", "--cpus-per-task=1", "--output=said")
        self.number = self.run("sbatch", *options, str(ROOT / "scripts/slurm"), "run_dir=x").strip()

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=True, timeout=100
        ).stdout

    def started(self) -> bool:
        """Wait until the run has started."""
        return read(self._folder / "ready").strip() == self.number

    def end(self, how: str) -> None:
        (self._folder / "end").write_text(f"{how}\n")

    def comes_to(self, state: str) -> str:
        """Wait until SLURM says that the job is in this state, and return all that it says."""
        return self.run("bash", "-c", f"until scontrol show job {self.number} | grep -w JobState={state}; do :; done")

    def starts_again(self) -> bool:
        """Wait until the job is queued again, and has started."""
        self.comes_to("PENDING")
        return self.started()

    def restarts(self) -> str:
        return re.findall(r"Restarts=(\d+)", self.run("scontrol", "show", "job", self.number))[0]


def test_scancel_cancels(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = Job(tmp_path, slurm)
    assert job.started()
    job.end("wait")
    job.run("scancel", job.number)
    job.comes_to("CANCELLED")
    assert job.restarts() == "0"
    assert "queued again" not in (tmp_path / "said").read_text()


def test_a_job_that_is_out_of_time_goes_on_until_it_has_finished(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = Job(tmp_path, slurm)
    assert job.started()
    job.end("wait")
    job.run("scancel", "--batch", "--signal=USR1", job.number)  # as before the end of its time
    assert job.starts_again()
    job.end("75")  # max_hours
    assert job.starts_again()
    job.end("0")
    job.comes_to("COMPLETED")
    assert job.restarts() == "2"
    assert (tmp_path / "said").read_text().count("queued again") == 2


def test_a_sweep_is_an_array_of_jobs_and_one_for_those_that_begin_as_one_of_them(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    words = [*TINY, "schedule=wsd", "schedule.decay_fraction=0.1,0.5", "warmup=0", "seed=0,1", "run_dir=sweep"]
    words += ["sweep.launcher=slurm", "sweep.slurm.gpus=0", "sweep.slurm.cpus=1"]
    command = [sys.executable, "-m", "rewarm", "train", "-m", *words, "sweep.slurm.options=['--mem=0']"]
    environment = slurm | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    logs = [path.read_text() for path in tmp_path.glob("sweep/.slurm/*.log")]
    assert done.returncode == 0, (done.stderr, logs)
    forked = {run.name: run.manifest.forked for run in map(open_run, find_runs([tmp_path / "sweep"])) if run.finished}
    assert [fork and fork.step for _, fork in sorted(forked.items())] == [None, None, 6, 6]
    assert len(logs) == 4
    assert "next: rewarm report sweep" in done.stdout


def test_a_run_that_cannot_win_is_saved_and_its_job_does_not_come_back(
    tmp_path: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (slurm | {"PYTHONPATH": str(ROOT / "src")}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(slurm_module, "POLL", 0.5)
    source = One(tmp_path / "left")
    options = SweepConfig(slurm=SlurmConfig(gpus=0, cpus=1, options=["--mem=0"]))
    ended = slurm_module.on_slurm(source, options, tmp_path)
    assert (ended.error, ended.failed, source.codes) == (None, (), [LEFT]), (tmp_path / ".slurm/0.log").read_text()
    assert open_run(tmp_path / "left").checkpoints
    assert "queued again" not in (tmp_path / ".slurm/0.log").read_text()


def test_ctrl_c_leaves_the_jobs_of_a_sweep_in_the_queue_and_the_same_command_waits_for_them_again(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    words = [*TINY, "seed=0,1", "run_dir=sweep", "sweep.launcher=slurm", "sweep.slurm.gpus=0"]
    words += ["sweep.slurm.options=[--hold]"]  # they wait until they are released
    command = [sys.executable, "-m", "rewarm", "train", "-m", *words]
    options = {"cwd": tmp_path, "env": slurm | {"PYTHONPATH": str(ROOT / "src")}, "text": True}
    numbers = []
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as sweep:  # type: ignore[call-overload]
            said = sweep.stderr.readline()
            numbers.append(re.findall(r"SLURM's jobs (\d+);", said))
            sweep.send_signal(signal.SIGINT)
            said += sweep.stderr.read()
        assert sweep.returncode == 128 + signal.SIGINT, said
    assert numbers[0] == numbers[1] != []
    assert f"scancel {numbers[0][0]} ends them" in said
    queued = subprocess.run(["squeue", "--noheader", "--array"], capture_output=True, check=True, **options)  # type: ignore[call-overload]
    assert len(queued.stdout.splitlines()) == 2
    subprocess.run(["scancel", *numbers[0]], check=True, **options)  # type: ignore[call-overload]


def test_without_slurm_one_line_says_so(tmp_path: Path) -> None:
    words = [*TINY, "seed=0,1", f"run_dir={tmp_path}", "sweep.launcher=slurm"]
    command = [sys.executable, "-m", "rewarm", "train", "-m", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rewarm: sweep.launcher=slurm: there is no sbatch here")


class Both(Source):
    """A run, and one that begins as it."""

    def all(self) -> list[launch.Job]:
        trunk = launch.Job("trunk", (), Path("trunk"))
        return [trunk, launch.Job("decay", (), Path("decay"), begins=Begins("trunk", trunk.folder, 3))]


def test_an_array_that_is_in_the_queue_is_known_though_the_next_could_not_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(*command: str, environment: object = None) -> str:
        del environment
        if command[0] == "squeue":
            return "17_0 RUNNING\n"
        if any(word.startswith("--dependency") for word in command):
            raise UserError("sbatch: out of order")
        return "17\n"

    monkeypatch.setattr(slurm_module, "_slurm", sbatch)
    arms = Both()
    with pytest.raises(UserError, match="out of order"):
        slurm_module.on_slurm(arms, SweepConfig(), tmp_path)
    assert (tmp_path / ".slurm/jobs").read_text() == "17_0 trunk\n"
    with pytest.raises(UserError, match="SLURM's jobs 17 are running some of its runs; wait for them, or scancel 17"):
        slurm_module.on_slurm(arms, SweepConfig(), tmp_path)
