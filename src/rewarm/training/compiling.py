"""Whether and how a model is compiled."""

from __future__ import annotations

import os
import shutil
from typing import Any, cast

import torch

from rewarm.config.schema import Config
from rewarm.model.architectures import blocks_of
from rewarm.model.losses import TokenLoss, differentiate
from rewarm.model.shape import PAYS_FROM
from rewarm.storage import cache_dir


def compiles(config: Config, device: torch.device, flops: float | None) -> bool:
    """Return whether the run of a config compiles its model: as it says, or where it saves time.

    `flops` is what the whole run takes, None where that is not known.
    """
    if config.train.compile is not None:
        return config.train.compile
    if config.train.parallel == "fsdp" or flops is None or flops < PAYS_FROM.get(device.type, float("inf")):
        return False
    return device.type != "cpu" or any(
        shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name
    )


def keep_compiled_code() -> None:
    """Have compiled code kept in the cache, where the next run finds it, unless the user says where.

    To be called before transformers' models are imported, which settle the place.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))


def compile_model(token_loss: TokenLoss, recompute: str = "none", backend: str = "inductor") -> None:
    """Compile the transformer under the output layer, in place, for the shapes that it will see.

    Each block is compiled by itself. They are all alike, so that the code of one serves all: a model of 24 blocks
    compiles as fast as one of two. What is around a block, as FSDP's gathering of its weights, stays outside. Only
    what chooses by single operations what to keep (`recompute` is selective) is compiled with the whole model.
    The products of the output layer stay as they are, chunk by chunk; what lies between them becomes a kernel or two.
    Parameters keep their names.
    """
    model = cast("Any", token_loss.model)
    if recompute == "selective":
        model.base_model.compile(dynamic=False, backend=backend)
    else:
        for block in blocks_of(model.base_model):
            any_block = cast("Any", block)
            any_block.forward = torch.compile(any_block.forward, dynamic=False, backend=backend)
    token_loss.differentiate = torch.compile(differentiate, dynamic=False, backend=backend)
