"""The SLURM script, with stand-ins for `scontrol` (there is no SLURM here) and for a run that a signal ends saved."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN = """#!/usr/bin/env bash
trap 'exit 138' USR1
trap 'exit 143' TERM
echo "$@" > arguments
echo ready
[ "$END" = wait ] || exit "$END"
while :; do read -r -t 1 < fifo || true; done
"""


def start(folder: Path, end: str, *arguments: str) -> subprocess.Popen[str]:
    for name, text in {"rewarm": RUN, "scontrol": '#!/bin/sh\necho "$@" > requeued\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    os.mkfifo(folder / "fifo")
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "END": end}
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts/slurm"), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_run_and_the_job_is_queued_again(tmp_path: Path, number: int, code: int) -> None:
    with start(tmp_path, "wait", "seed=1") as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        job.send_signal(number)
        assert job.wait() == code
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert (tmp_path / "arguments").read_text() == "train seed=1 run_dir=runs/slurm-17\n"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, False), (75, True)])
def test_only_what_can_go_on_is_queued_again(tmp_path: Path, code: int, requeued: bool) -> None:  # noqa: FBT001
    with start(tmp_path, str(code), "run_dir=x") as job:
        assert job.wait() == code
    assert (tmp_path / "requeued").exists() == requeued
    assert (tmp_path / "arguments").read_text() == "train run_dir=x\n"
