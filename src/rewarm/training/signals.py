"""Signals ask a run to stop; the loop answers at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from rewarm.errors import RewarmError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class PreemptedError(RewarmError):
    """The run was asked to stop, and was saved; the same command continues it."""


class StopRequest:
    """While entered, SIGTERM, SIGINT and SIGUSR1 set a flag; handlers are restored at the end."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number

    def asked(self) -> bool:
        """Return whether a signal came."""
        return self._signal is not None

    def exit_error(self, step: int) -> PreemptedError:
        """Return the error that ends the process with 128 + signal, as SLURM's requeue expects."""
        assert self._signal is not None
        name = signal.Signals(self._signal).name
        error = PreemptedError(f"{name}: saved at step {step}; the same command with its run_dir continues")
        error.exit_code = 128 + self._signal
        return error
