"""Saves a run where the loop says so: beside the steps that follow, or, sharded, by all processes together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from rewarm.config.plan import Plan
from rewarm.config.schema import CheckpointConfig
from rewarm.runs.checkpoint import prune
from rewarm.runs.folder import RunFolder
from rewarm.storage import storing
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.checkpoints import sharded
from rewarm.training.checkpoints.snapshot import Snapshot
from rewarm.training.distributed import parallel, world
from rewarm.training.state import TrainState

ASSUMED_BYTES_PER_SECOND = 1e8
"""How fast a first save is assumed to be, when time is running out before one was measured."""


class Saver:
    """Saves a run's state. This one does nothing, beside a first process that has the whole of it."""

    seconds: float = 0.0
    """How long a save may take."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def save(self) -> None:
        """Save the state as it is now; it may be read at once, and changed after `wait_for_copy`."""

    def wait_for_copy(self) -> None:
        """Wait until the state that is being saved is copied, and may change."""


@dataclass(frozen=True)
class Writer:
    """Writes the checkpoints of a run into its folder, and removes those that are not to be kept."""

    run: RunFolder
    checkpoint: CheckpointConfig
    plan: Plan
    model: nn.Module
    tokenizer_folder: Path | None

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint."""
        self.run.sync_metrics()  # no checkpoint may outlive the metrics before it
        checkpoints.write(self.run.checkpoints, snapshot, self.model, self.tokenizer_folder)
        self.prune()

    def prune(self) -> None:
        """Remove what is not to be kept."""
        with storing(self.run.checkpoints):
            prune(self.run.checkpoints, self.checkpoint, self.plan)


def make_saver(state: TrainState, writer: Writer) -> Saver:
    """Return what this process of a run saves the state with."""
    if world.is_first():
        writer.prune()  # a process that was killed after its last save had no time to
    if parallel.is_sharded(state.model):
        return ShardedSaver(state, writer)
    return BackgroundSaver(state, writer.write) if world.is_first() else Saver()


def _assumed_seconds(state: TrainState) -> float:
    weights = sum(p.numel() * p.element_size() for p in state.model.parameters())
    return 3 * weights / ASSUMED_BYTES_PER_SECOND  # weights and both moments


class ShardedSaver(Saver):
    """All processes write, each its part of a sharded state, and the loop waits for it."""

    def __init__(self, state: TrainState, writer: Writer) -> None:
        self._state, self._writer = state, writer
        self.seconds = _assumed_seconds(state)

    def save(self) -> None:
        """Save the state."""
        start = time.monotonic()
        snapshot = sharded.take_snapshot(self._state, self._writer.run.checkpoints)
        if world.is_first():
            self._writer.write(snapshot)
        self.seconds = 1.5 * (time.monotonic() - start)


class BackgroundSaver(Saver):
    """Has the state copied and written by a thread: `write` is called there with the copy.

    Only an update changes weights and moments, so the copy is made while the next step computes its gradients. The
    memory is that of one copy, which is used again: a save that comes before the last one is written waits for it.
    What goes wrong in the thread is raised by the next call of `save` or `wait_for_copy`, or at the end of the block.
    """

    def __init__(self, state: TrainState, write: Callable[[Snapshot], None]) -> None:
        self._state, self._write = state, write
        self._snapshot: Snapshot | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._copied_on_device: torch.cuda.Event | None = None
        self.seconds = _assumed_seconds(state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self._check()

    def save(self) -> None:
        """Begin to save the state as it is now."""
        self.wait()
        self._check()
        live = Snapshot.view(self._state)
        began = None
        if self._state.sums.is_cuda:
            began = torch.cuda.Event()  # type: ignore[no-untyped-call]
            began.record()
        self._copied.clear()
        self._saving = self._pool.submit(self._run, live, began)

    def wait_for_copy(self) -> None:
        """Wait until the state is copied; a GPU waits by itself, and the host goes on."""
        self._check()
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
            self.seconds = 1.5 * (time.monotonic() - start)

    def _copy(self, live: Snapshot, began: torch.cuda.Event | None) -> None:
        """Copy the state beside what the loop computes; on a GPU, in a stream of its own."""
        if began is None:
            self._snapshot = live.copy(self._snapshot)
            self._copied.set()
            return
        device = next(iter(live.weights.values())).device
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            began.wait()
            self._snapshot = live.copy(self._snapshot)
            done.record()
        self._copied_on_device = done
        self._copied.set()
        done.synchronize()

    def wait(self) -> None:
        """Wait until what was saved is written."""
        if self._saving is not None:
            wait([self._saving])

    def _check(self) -> None:
        """Raise what went wrong in the background, once."""
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            saving.result()
