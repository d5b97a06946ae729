"""What the processes of a run tell each other. All of them call each function; a process alone talks to nobody."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rewarm.errors import UserError
from rewarm.training.distributed.world import is_first, size

T = TypeVar("T")


def total(values: Tensor) -> Tensor:
    """Add up `values` over all processes, in place, and return it. The host does not wait for a GPU."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """Return the largest of all processes' values. Only the hosts wait for each other."""
    if size() == 1:
        return value
    most = torch.tensor(value)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def any_of(flag: Tensor) -> Tensor:
    """Return 1 where any process has 1 and 0 elsewhere, on the device of `flag`."""
    if size() > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag


def broadcast_object(compute: Callable[[], T]) -> T:
    """Return to all what the first process computes; the others do not compute it."""
    if size() == 1:
        return compute()
    objects = [compute() if is_first() else None]
    dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
    result: T = objects[0]  # type: ignore[assignment]
    return result


def all_gather_object(value: T) -> list[T]:
    """Return all processes' values, in their order."""
    if size() == 1:
        return [value]
    objects: list[T] = [value] * size()
    dist.all_gather_object(objects, value)
    return objects


@contextmanager
def main_process_first() -> Iterator[None]:
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
    mark = broadcast_object(lambda: f".seen-by-all-{uuid.uuid4().hex}")
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
    largest(0)
    seen = all_gather_object((platform.node(), str(folder), (folder / mark).exists()))
    if is_first():
        (folder / mark).unlink()
    blind = {f"{path} on {node}" for node, path, sees in seen if not sees}
    if blind:
        raise UserError(
            f"{what}={folder}: {', '.join(sorted(blind))} is another disk than {seen[0][1]} on {seen[0][0]}, where "
            f"the first process writes; set {what} to a folder on a disk that all of them see"
        )
