"""A model that several processes train: replicated by DDP, or sharded by FSDP. A process alone has it whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rewarm.model.architectures import blocks_of
from rewarm.training.distributed.world import size


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
    """Shard a module's weights over all processes, in place, and return it; a block's are whole only while it works.

    `module` goes forward through calls and through `each`. Alone, a process keeps all of them.
    """
    if size() == 1:
        return module
    mesh = init_device_mesh(device.type, (size(),))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "each")
    return module


def reshard(module: nn.Module) -> None:
    """Reshard weights that FSDP gathered for a forward pass without a backward pass, as an evaluation's."""
    if isinstance(module, FSDPModule):
        module.reshard()


def full_tensor(value: Tensor) -> Tensor:
    """Return a tensor as one process alone would have it: gathered where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module's weights are sharded over all processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which backward passes leave gradients to this process alone, to be added to.

    Gradients of sharded weights are shared in each of them: to keep them whole would take the memory that sharding
    saves.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
