"""What a process needs to know of the others that train the same run; alone, nothing here does anything.

torchrun starts the processes and tells each its place in environment variables; torch.distributed does the talking:
gloo between hosts, NCCL between GPUs. Whatever is written or decided is the first process's to write or decide.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rewarm.errors import RewarmError, SaidElsewhereError, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=2)
"""How long the others wait for a process, as for the first one while it downloads a model."""
FAILED = "rewarm/failed"
"""Key under which the first process that fails leaves its exit code."""
LEAVE_AFTER = 5.0
"""Seconds that a process has to leave by itself, once another one has failed."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and which one on its own node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place(environment: Mapping[str, str]) -> Place:
    """Return the place that torchrun's variables give this process. Raises `UserError` where they are half set.

    MASTER_ADDR and MASTER_PORT alone mean nothing: many clusters set them for every job.
    """
    if not any(name in environment for name in VARIABLES[:3]):
        return Place()
    advice = "start the run with torchrun, which sets them all, or unset them"
    if missing := [name for name in VARIABLES if not environment.get(name)]:
        given = ", ".join(f"{name}={environment[name]}" for name in VARIABLES if environment.get(name))
        raise UserError(f"{given or 'the environment'}: {', '.join(missing)} must be set too; {advice}")
    for name in (*VARIABLES[:3], "MASTER_PORT"):
        if not environment[name].isdigit():
            raise UserError(f"{name}={environment[name]}: must be a number; {advice}")
    rank, size, local_rank = (int(environment[name]) for name in VARIABLES[:3])
    if rank >= size:
        raise UserError(f"RANK={rank}: must be below WORLD_SIZE={size}; {advice}")
    return Place(rank, size, local_rank)


def size() -> int:
    """Return how many processes train this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes and decides."""
    return rank() == 0


def local_device(device: torch.device, local_rank: int) -> torch.device:
    """Return the device of this process among those of its node. Raises `UserError` where there are too few."""
    if device.type != "cuda":
        return device
    there = torch.cuda.device_count()
    if local_rank >= there:
        raise UserError(
            f"LOCAL_RANK={local_rank}: this node has {there} GPUs, and each process needs one; "
            f"start at most {there} on a node (torchrun --nproc-per-node {there})"
        )
    return torch.device("cuda", local_rank)


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


# --- joining and leaving -------------------------------------------------------------------------------------------


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
            f"the {here.size} processes do not find each other there ({_first_line(error)})"
        ) from error
    with _failing_together(store):
        yield
    dist.destroy_process_group()


def _store() -> Store:
    """Return what the processes leave messages in. After a restart by torchrun it is empty again."""
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(f"rewarm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def _failing_together(store: Store) -> Iterator[None]:
    left = threading.Event()
    watch = _store()  # a connection of its own: this one may be in use
    threading.Thread(target=_leave_with_the_others, args=(watch, left), name="watch", daemon=True).start()
    try:
        yield
    except Exception as error:
        code = error.exit_code if isinstance(error, RewarmError) else 1
        first = _say_failed(store, f"{rank()} {code}")
        if first is None or int(first.split()[0]) != rank():
            raise SaidElsewhereError(int(first.split()[1]) if first else code) from error
        if _is_of_a_lost_process(error):  # killed, it could not say anything
            error = RewarmError(
                f"another process is gone ({_first_line(error)}); the same command goes on from the last checkpoint"
            )
        get_error_handler().record_exception(error)  # torchrun shows it as the root cause
        raise error from error.__cause__
    finally:
        left.set()


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- talking -------------------------------------------------------------------------------------------------------


def total(values: Tensor) -> Tensor:
    """Add up `values` over all processes, in place, and return it. The host does not wait for a GPU."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """Return the largest of all processes' values. Only the hosts wait for each other."""
    if size() == 1:
        return value
    held = torch.tensor(value)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def any_of(flag: Tensor) -> Tensor:
    """Return 1 where any process has 1 and 0 elsewhere, on the device of `flag`."""
    if size() > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag


def from_first(compute: Callable[[], T]) -> T:
    """Return to all what the first process computes; the others do not compute it."""
    if size() == 1:
        return compute()
    held = [compute() if is_first() else None]
    dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    result: T = held[0]  # type: ignore[assignment]
    return result


def gather(value: T) -> list[T]:
    """Return all processes' values, in their order."""
    if size() == 1:
        return [value]
    held: list[T] = [value] * size()
    dist.all_gather_object(held, value)
    return held


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do the block before the others: what it downloads they then find."""
    if not is_first():
        largest(0)
    yield
    if is_first():
        largest(0)


def check_shared(folder: Path, what: str) -> None:
    """Raise `UserError` unless every process sees what the first one writes into its `folder`; `what` chose it."""
    if size() == 1:
        return
    mark = from_first(lambda: f".seen-by-all-{uuid.uuid4().hex}")
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
    largest(0)
    seen = gather((platform.node(), str(folder), (folder / mark).exists()))
    if is_first():
        (folder / mark).unlink()
    blind = {f"{path} on {node}" for node, path, sees in seen if not sees}
    if blind:
        raise UserError(
            f"{what}={folder}: {', '.join(sorted(blind))} is another disk than {seen[0][1]} on {seen[0][0]}, where "
            f"the first process writes; set {what} to a folder on a disk that all of them see"
        )


def share(things: int) -> range:
    """Return which of the `things` that all processes share evenly are this one's."""
    each = things // size()
    return range(rank() * each, (rank() + 1) * each)


# --- training together ---------------------------------------------------------------------------------------------


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """Return `module` as all processes train it: with the same weights, and their gradients' mean for everyone."""
    if size() == 1 or is_sharded(module):
        return module
    constants = [name for name, _ in module.named_buffers()]  # tables of rotary embeddings, the same everywhere
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model  # noqa: SLF001 - what all versions have
    ignore(module, constants)  # type: ignore[no-untyped-call]
    device_ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Spread a module's weights over all processes, in place, and return it; a block's are whole only while it works.

    `module` goes forward through calls and through `each`. Alone, a process keeps all of them.
    """
    if size() == 1:
        return module
    mesh = init_device_mesh(device.type, (size(),))
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    for block in max(stacks, key=len, default=nn.ModuleList()):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "each")
    return module


def spread_again(module: nn.Module) -> None:
    """Give up the weights that a forward pass without a backward pass has left whole."""
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(value: Tensor) -> Tensor:
    """Return a tensor as one process alone would have it: put together where it is spread over all."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module's weights are spread over all processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


@contextmanager
def sharing_gradients(module: nn.Module, *, now: bool) -> Iterator[None]:
    """While entered, a forward and backward pass shares its gradients with the others only if `now`.

    Where weights are spread, gradients are spread each time: to keep them whole until `now` would take the memory
    that spreading saves.
    """
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield
