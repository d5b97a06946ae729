"""A model that several processes train: replicated by DDP, or sharded by FSDP. A process alone has it whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
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


class _ExactLayerNorm(nn.LayerNorm):
    """A LayerNorm that computes in FP32 whatever its weights are gathered in. On a GPU, autocast does that itself."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return nn.functional.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)


def shard(module: nn.Module, device: torch.device, dtype: torch.dtype, nodes: int = 1) -> nn.Module:
    """Shard a module's weights over all processes, in place, and return it; a block's are whole only while it works.

    `module` goes forward through calls and through `each`. Alone, a process keeps all of them. With several `nodes`
    each node has a whole model, sharded over its own processes, and only gradients pass between nodes.

    Blocks are gathered in `dtype`, the type of their products, and their gradients reduced in FP32: half the bytes of
    FP32 weights. So their normalisations are rounded too, which one process leaves in FP32. Embeddings, the last
    normalisation and the output layer are gathered in FP32, because the loss makes their gradient in FP32.
    """
    if size() == 1:
        return module
    shape, names = ((nodes, size() // nodes), ("replicate", "shard")) if nodes > 1 else ((size(),), ("shard",))
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    lower = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(module):
        for norm in block.modules():
            if type(norm) is nn.LayerNorm:
                norm.__class__ = _ExactLayerNorm  # it adds no state
        fully_shard(block, mesh=mesh, mp_policy=lower)
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


@torch.no_grad()
def copy_whole(value: Tensor, to: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(to, DTensor):
        value = distribute_tensor(value.to(to.device), to.device_mesh, to.placements)
    to.copy_(value)


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module's weights are sharded over all processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which backward passes leave gradients to this process alone, to be added to.

    Gradients of sharded weights are shared in each of them: to keep them whole would take the memory that sharding
    saves.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
