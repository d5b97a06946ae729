"""What asks a run to stop: signals, and the end of its time. It stops at the end of a step, saved."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from rewarm.errors import SIGNALS, PreemptedError

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Those of the signals by which a scheduler says that a job's time will be over soon."""
OUT_OF_TIME = 75
"""Exit code of a run that left because of `max_hours`: EX_TEMPFAIL of sysexits.h, "try again"."""
_STARTED = time.monotonic()


def _say(text: str) -> None:
    """Write a line to stderr from a signal handler, where Python's own streams may be in use.

    Under torchrun, which ends processes by signals where one has failed, only that one's error is to be seen.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        with suppress(OSError):  # nobody listens any more: what the signal asks for is done all the same
            os.write(2, f"\nrewarm: {text}\n".encode())


def leave(number: int, _: FrameType | None = None) -> None:
    """End the process at once with 128 + signal. Nothing can break: every file is renamed into place whole."""
    _say(f"{signal.Signals(number).name}: left at once; the same command starts again from what was saved")
    os._exit(128 + number)


def leave_on_signals() -> None:
    """Make the signals end this process with a line and an exit code, and without a traceback."""
    for number in SIGNALS:
        signal.signal(number, leave)


def ignore_signals() -> None:
    """Let no signal change the exit code of this process, which has done its work.

    While Python shuts down it gives signals back to the operating system, whose answer to most is to kill.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """While entered, a signal sets a flag that the loop asks for after each step.

    Before the first step there is nothing to save, and a signal ends the process at once; so does the third one
    after it. Handlers are restored at the end, but that a process without others ignores `WARNINGS` from then on: the
    run has finished or is saved, and must not be reported as interrupted once more. `max_hours` counts from the
    start of the process.

    Processes that train together stop at the same step: `agree` returns the largest of the numbers that they give.
    """

    def __init__(self, max_hours: float | None = None, agree: Callable[[int], int] = lambda reason: reason) -> None:
        self._max_hours = max_hours
        self._agree = agree
        self._signals: list[int] = []
        self._reason = 0
        """Why all stop: the number of a signal, or OUT_OF_TIME."""
        self._previous: dict[signal.Signals, Any] = {}
        self._step: int | None = None
        """The last one that was done here."""
        self._last_asked = time.monotonic()
        self._longest_step = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for s, handler in self._previous.items():
            over = kind is None and handler is leave and s in WARNINGS
            signal.signal(s, signal.SIG_IGN if over else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)
        if self._step is None or len(self._signals) >= 3:
            leave(number)
        if len(self._signals) == 1:
            _say(f"{signal.Signals(number).name}: saving after this step (two more signals: leave at once, unsaved)")

    def asked(self, step: int, save_seconds: float) -> bool:
        """Return whether to save and leave after `step`; `save_seconds` is how long a save may take."""
        self._step = step
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._last_asked)
        self._last_asked = now
        out_of_time = now + 2 * self._longest_step + save_seconds > self._deadline()
        mine = self._signals[0] if self._signals else OUT_OF_TIME if out_of_time else 0
        self._reason = self._agree(mine)
        return self._reason != 0

    def _deadline(self) -> float:
        return math.inf if self._max_hours is None else _STARTED + 3600 * self._max_hours

    def error(self) -> PreemptedError:
        """Return the error that ends the process with 128 + signal, as SLURM's requeue expects, or 75."""
        if self._reason == OUT_OF_TIME:
            reason, code = f"max_hours={self._max_hours}", OUT_OF_TIME
        else:
            reason, code = signal.Signals(self._reason).name, 128 + self._reason
        at = f"saved at step {self._step}"
        return PreemptedError(f"{reason}: {at}; the same command with its run_dir continues", code)
