"""What FSDP gathers and reduces, counted in bytes: one process stands for eight, whose collectives do nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from rewarm.config.schema import Config
from rewarm.model.architectures import blocks_of
from rewarm.model.losses import TokenLoss
from rewarm.training.distributed import parallel, world
from rewarm.training.precision import DTYPES, Precision
from rewarm.training.recompute import recompute
from tests.training.conftest import Build
from tests.training.test_loop import TINY

CPU = torch.device("cpu")
WORLD = 8


@pytest.fixture
def eight() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the whole tensors that collectives make or take, by kind and type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        for kind, whole in (("_allgather_base_", 0), ("_reduce_scatter_base_", 1), ("allreduce_", 0)):
            if name.startswith(f"c10d.{kind}."):
                tensor = args[whole][0] if isinstance(args[whole], list | tuple) else args[whole]
                self.bytes[kind.strip("_"), tensor.dtype] += tensor.numel() * tensor.itemsize
        return function(*args, **(kwargs or {}))


def parts(token_loss: TokenLoss) -> tuple[int, int]:
    """Return the parameters of the blocks, and all others."""
    blocks = sum(p.numel() for block in blocks_of(token_loss) for p in block.parameters())
    return blocks, sum(p.numel() for p in token_loss.parameters()) - blocks


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", ["none", "full"])
def test_blocks_are_gathered_twice_in_the_type_of_their_products(
    small: Callable[..., Config], make_loop: Build, eight: None, precision: str, kind: str
) -> None:
    del eight
    model = make_loop(small(*TINY, "model.layers=3"))[0].state.model
    recompute(model, kind)
    token_loss = TokenLoss(model)
    blocks, rest = parts(token_loss)
    dtype = DTYPES[precision]
    parallel.shard(token_loss, CPU, dtype)
    assert parallel.is_sharded(token_loss)
    windows = torch.zeros(2, 9, dtype=torch.int64)
    with Traffic() as traffic:
        for _ in range(2):  # micro-batches
            with Precision(precision, CPU).autocast():
                loss = token_loss(windows, torch.ones(()))
            loss.backward()
    expected = Counter({("allgather_base", dtype): 2 * 2 * blocks * dtype.itemsize})
    expected["allgather_base", torch.float32] += 2 * rest * 4
    expected["reduce_scatter_base", torch.float32] = 2 * (blocks + rest) * 4
    # Each process has an even share of every parameter, which rounds a few of them up.
    assert traffic.bytes.keys() == expected.keys()
    for key, count in expected.items():
        assert count <= traffic.bytes[key] <= 1.02 * count, key
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in token_loss.parameters())


def test_only_gradients_pass_between_nodes(small: Callable[..., Config], make_loop: Build, eight: None) -> None:
    del eight
    token_loss = make_loop(small(*TINY))[0].token_loss
    total = sum(parts(token_loss))
    parallel.shard(token_loss, CPU, torch.bfloat16, nodes=world.nodes({"LOCAL_WORLD_SIZE": "4"}))
    with Traffic() as traffic:
        with Precision("bf16", CPU).autocast():
            loss = token_loss(torch.zeros(2, 9, dtype=torch.int64), torch.ones(()))
        loss.backward()
    # Each of four has a quarter of the gradients to reduce with the other node.
    between = traffic.bytes["allreduce", torch.float32]
    assert total <= between <= 1.02 * total
