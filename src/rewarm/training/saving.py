"""Saves a run in the background: the state is copied beside the next step, and written beside those after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import torch

from rewarm.training.checkpoints import Snapshot, copied, refer
from rewarm.training.state import TrainState

ASSUMED_BYTES_PER_SECOND = 1e8
"""How fast a first save is assumed to be, when time is running out before one was measured."""


class Saver:
    """Has a state copied and written by a thread: `write` is called there with the copy.

    Only an update changes weights and moments, so the copy is made while the next step computes its gradients; the
    loop calls `settle` before it updates. The memory is that of one copy, which is used again: a save that comes
    before the last one is written waits for it. What goes wrong in the thread is raised by the next call of `save`,
    `check` or the end of the block.
    """

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._snapshot: Snapshot | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._copied_on_device: torch.cuda.Event | None = None
        self._measured: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.check()

    def save(self, state: TrainState) -> None:
        """Save `state` as it is now; it may be read at once, and changed after `settle`."""
        self.wait()
        self.check()
        live = refer(state)
        began = None
        if state.sums.is_cuda:
            began = torch.cuda.Event()  # type: ignore[no-untyped-call]
            began.record()
        self._copied.clear()
        self._saving = self._pool.submit(self._run, live, began)

    def settle(self) -> None:
        """Wait until the state that is being saved is copied; a GPU waits by itself, and the host goes on."""
        self._copied.wait()
        if self._copied_on_device is not None:
            self._copied_on_device.wait()
            self._copied_on_device = None

    def _run(self, live: Snapshot, began: torch.cuda.Event | None) -> None:
        start = time.monotonic()
        try:
            self._copy(live, began)
            assert self._snapshot is not None
            self._write(self._snapshot)
        finally:
            self._copied.set()
            self._measured = time.monotonic() - start

    def _copy(self, live: Snapshot, began: torch.cuda.Event | None) -> None:
        """Copy the state beside what the loop computes; on a GPU, in a stream of its own."""
        if began is None:
            self._snapshot = copied(live, self._snapshot)
            self._copied.set()
            return
        device = next(iter(live.weights.values())).device
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            began.wait()
            self._snapshot = copied(live, self._snapshot)
            done.record()
        self._copied_on_device = done
        self._copied.set()
        done.synchronize()

    def wait(self) -> None:
        """Wait until what was saved is written."""
        if self._saving is not None:
            wait([self._saving])

    def check(self) -> None:
        """Raise what went wrong in the background, once."""
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            saving.result()

    def seconds(self, state: TrainState) -> float:
        """Return how long a save may take: as long as the last one, and some more."""
        if self._measured is not None:
            return 1.5 * self._measured
        weights = sum(p.numel() * p.element_size() for p in state.model.parameters())
        return 3 * weights / ASSUMED_BYTES_PER_SECOND  # weights and both moments
