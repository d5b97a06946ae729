"""The place of this process among those that train the same run, as torchrun's environment variables give it.

Whatever is written or decided is the first process's to write or decide. A process alone is the first of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rewarm.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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


def nodes(environment: Mapping[str, str]) -> int:
    """Return over how many nodes the processes are spread, as torchrun tells; 1 where it does not.

    Raises `UserError` where nodes have different numbers of them.
    """
    each = int(environment.get("LOCAL_WORLD_SIZE") or size())
    if size() % each:
        raise UserError(
            f"train.parallel=hsdp: {size()} processes with {each} on this node are not as many on every node; "
            f"start the same --nproc-per-node everywhere, or use train.parallel=fsdp"
        )
    return size() // each


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


def share(things: int) -> range:
    """Return which of the `things` that all processes share evenly are this one's."""
    each = things // size()
    return range(rank() * each, (rank() + 1) * each)
