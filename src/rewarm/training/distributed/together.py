"""Joining the processes of a run, which torchrun starts, and failing together.

`torch.distributed` does the talking: gloo between hosts, NCCL between GPUs. A process alone joins nobody.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from rewarm.errors import PeerFailedError, RewarmError, UserError, first_line
from rewarm.training.distributed.world import place, rank

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=2)
"""How long the others wait for a process, as for the first one while it downloads a model."""
FAILED = "rewarm/failed"
"""Key under which the first process that fails leaves its exit code."""
LEAVE_AFTER = 5.0
"""Seconds that a process has to leave by itself, once another one has failed."""


def choose_backend(device: torch.device) -> str:
    """Return the backend. Raises `UserError` where GPUs have none: only CPUs can do without NCCL."""
    if device.type == "cpu":
        if not dist.is_nccl_available() and is_first_of(os.environ):
            log.warning("this torch has no NCCL: the processes train on CPUs, and talk through gloo")
        return "gloo"
    if device.type != "cuda":
        raise UserError(f"device={device.type}: cannot be used by several processes; give cpu or cuda, or start one")
    if not dist.is_nccl_available():
        raise UserError(
            "device=cuda: this torch has no NCCL, which GPUs talk through; install one that has, or give cpu"
        )
    return "cpu:gloo,cuda:nccl"


def is_first_of(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun's variables make this process the first, before any has joined."""
    return environment.get("RANK", "0") == "0"


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """While entered, this process is one of those that torchrun started for this run.

    A process that fails says so to the others before it leaves. They leave too, without a word, so that its own
    error is the one that is seen: at once where they meet its absence, and within seconds where they would wait.
    """
    here = place(os.environ)
    if here.size == 1:
        yield
        return
    backend = choose_backend(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store = _store()
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=PATIENCE)
    except (dist.DistError, ValueError) as error:
        raise UserError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}: "
            f"the {here.size} processes do not find each other there ({first_line(error)})"
        ) from error
    with _failing_together(store, _store()):  # a second connection: the first one may be in use
        yield
    dist.destroy_process_group()


def _store() -> Store:
    """Return what the processes leave messages in. After a restart by torchrun it is empty again."""
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(f"rewarm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def _failing_together(store: Store, watched: Store) -> Iterator[None]:
    left = threading.Event()
    watch = threading.Thread(target=_leave_with_the_others, args=(watched, left), name="watch", daemon=True)
    watch.start()
    try:
        yield
    except Exception as error:
        code = error.exit_code if isinstance(error, RewarmError) else 1
        first = _say_failed(store, f"{rank()} {code}")
        if first is None or int(first.split()[0]) != rank():
            raise PeerFailedError(int(first.split()[1]) if first else code) from error
        if _is_of_a_lost_process(error):  # killed, it could not say anything
            error = RewarmError(
                f"another process is gone ({first_line(error)}); the same command goes on from the last checkpoint"
            )
        get_error_handler().record_exception(error)  # torchrun shows it as the root cause
        raise error from error.__cause__
    finally:
        left.set()
        # Python ends a thread by force that comes back from C++ while it shuts down, and C++ then aborts the process.
        watch.join(LEAVE_AFTER)


def _say_failed(store: Store, mine: str) -> str | None:
    """Return what the first process that failed said: its rank and exit code; None where nobody can say anything."""
    try:
        return store.compare_set(FAILED, "", mine).decode()
    except dist.DistError:  # the store is gone with the process that held it
        return None


def _leave_with_the_others(store: Store, left: threading.Event) -> None:
    """End this process a little after another one has failed, if it does not end by itself: it may wait for ever."""
    try:
        while not left.wait(0.5):
            if store.check([FAILED]):
                if not left.wait(LEAVE_AFTER):
                    os._exit(int(store.get(FAILED).decode().split()[1]))
                return
    except dist.DistError:
        return


def _is_of_a_lost_process(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
