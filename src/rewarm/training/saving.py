"""Saves a run in the background: the loop only waits while its state is copied."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from rewarm.training.checkpoints import Snapshot, take_snapshot
from rewarm.training.state import TrainState

ASSUMED_BYTES_PER_SECOND = 1e8
"""How fast a first save is assumed to be, when time is running out before one was measured."""


class Saver:
    """Copies a state and has it written by a thread: `write` is called there with the copy.

    The memory is that of one copy, which is used again: a save that comes before the last one is written waits
    for it. What goes wrong in the thread is raised by the next call of `save`, `check` or the end of the block.
    """

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._measured: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        if error is None:
            self.check()

    def save(self, state: TrainState) -> None:
        """Save `state` as it is now; it may change as soon as this returns."""
        self.wait()
        self.check()
        self._snapshot = take_snapshot(state, self._snapshot)
        copied = torch.cuda.Event() if state.sums.is_cuda else None  # type: ignore[no-untyped-call]
        if copied is not None:
            copied.record()
        self._thread = threading.Thread(target=self._run, args=(self._snapshot, copied), name="saver")
        self._thread.start()

    def _run(self, snapshot: Snapshot, copied: torch.cuda.Event | None) -> None:
        start = time.monotonic()
        try:
            if copied is not None:
                copied.synchronize()
            self._write(snapshot)
        except BaseException as error:
            self._error = error
        self._measured = time.monotonic() - start

    def wait(self) -> None:
        """Wait until what was saved is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what went wrong in the background, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def seconds(self, state: TrainState) -> float:
        """Return how long a save may take: as long as the last one, and some more."""
        if self._measured is not None:
            return 1.5 * self._measured
        weights = sum(p.numel() * p.element_size() for p in state.model.parameters())
        return 3 * weights / ASSUMED_BYTES_PER_SECOND  # weights and both moments
