"""Activation checkpointing: less is kept for the backward pass, and no number changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.training.recompute import recompute
from rewarm.training.run import run as train
from tests.training.conftest import Build
from tests.training.killing import assert_same
from tests.training.test_loop import TINY

KINDS = ("none", "selective", "full")


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(function).startswith(("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"))
        return function(*args, **(kwargs or {}))


def test_less_is_kept_and_more_computed(small: Callable[..., Config], make_loop: Build) -> None:
    kept, products = {}, {}
    for kind in KINDS:
        loop, _ = make_loop(small(*TINY, "model.layers=3"))
        recompute(loop.state.model, kind)
        held: dict[int, int] = {}

        def pack(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        windows = torch.from_numpy(loop.data.batches[1])
        with Products() as counted, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loop.token_loss(windows, torch.ones(()))
            kept[kind] = sum(held.values())
            loss.backward()
        products[kind] = counted.count
    assert kept["full"] < kept["none"]
    assert products["none"] == products["selective"] < products["full"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_the_same_to_the_last_bit(small: Callable[..., Config], tmp_path: Path, precision: str) -> None:
    for kind in KINDS:
        words = (f"train.recompute={kind}", f"precision={precision}", f"run_dir={tmp_path / kind}")
        train(small(*TINY, "init=scratch", *words))
    assert_same(tmp_path / "none", tmp_path / "selective")
    assert_same(tmp_path / "none", tmp_path / "full")


def test_a_model_that_cannot_is_refused() -> None:
    class Other(torch.nn.Module):
        def gradient_checkpointing_enable(self, _: object) -> None:
            raise ValueError("Other does not support gradient checkpointing.")

    with pytest.raises(UserError, match=r"train\.recompute=full"):
        recompute(Other(), "full")
