"""What a signal does to a run, and the end of its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rewarm.training.signals import OUT_OF_TIME, SIGNALS, StopRequest
from tests.conftest import ROOT


def in_a_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import os, signal\nfrom rewarm.training.signals import *\n" + program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_a_step_asks_to_stop_and_gives_its_exit_code(number: int) -> None:
    with StopRequest() as stop:
        assert not stop.asked(7, 0.0)
        os.kill(os.getpid(), number)
        assert stop.asked(7, 0.0)
    assert stop.error().exit_code == 128 + number
    assert "saved at step 7" in str(stop.error())


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_before_the_first_step_ends_the_process() -> None:
    done = in_a_process("with StopRequest():\n os.kill(os.getpid(), signal.SIGUSR1)\n print('went on')")
    assert done.returncode == 128 + signal.SIGUSR1
    assert "went on" not in done.stdout


def test_two_signals_still_save_and_a_third_leaves_at_once() -> None:
    done = in_a_process(
        "with StopRequest() as stop:\n"
        " stop.asked(1, 0)\n"
        " for n in range(3):\n"
        "  print(n, flush=True)\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n"
        "  assert stop.asked(1, 0)\n"
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout.split() == ["0", "1", "2"]
    assert "left at once" in done.stderr


def test_a_thread_can_train_without_handlers() -> None:
    asked = []

    def train() -> None:
        with StopRequest() as stop:
            asked.append(stop.asked(7, 0.0))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [False]


def test_time_runs_out_before_the_save_would_not_fit() -> None:
    with StopRequest(max_hours=1e6) as stop:
        assert not stop.asked(7, 0.0)
        assert stop.asked(2, save_seconds=3600e6)
    assert stop.error().exit_code == OUT_OF_TIME


def test_a_run_that_has_finished_is_not_interrupted_once_more() -> None:
    done = in_a_process(
        "leave_on_signals()\n"
        "with StopRequest() as stop:\n stop.asked(1, 0)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('done')"
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(("ignores", "code"), [(True, 0), (False, 128 + signal.SIGUSR1)])
def test_the_exit_code_stands_while_python_shuts_down(ignores: bool, code: int) -> None:  # noqa: FBT001
    late = "import atexit\natexit.register(os.kill, os.getpid(), signal.SIGUSR1)\nleave_on_signals()\n"
    assert in_a_process(late + "ignore_signals()\n" * ignores).returncode == code
