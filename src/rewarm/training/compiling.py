"""Whether and how a model is compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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
    if flops is None or flops < PAYS_FROM.get(device.type, float("inf")):
        return False
    if device.type != "cpu":
        return True
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    return config.train.parallel == "ddp" and any(shutil.which(name) for name in compilers if name)


def keep_compiled_code() -> None:
    """Have compiled code kept in the cache, where the next run finds it, unless the user says where.

    To be called before transformers' models are imported, which settle the place.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))


def compile_model(token_loss: TokenLoss, *, by_block: bool, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the transformer under the output layer, in place, for the shapes that it will see.

    As a whole it is a few per cent faster. Block by block, what happens around a block stays outside: FSDP gathers
    its weights, DDP reduces its gradients while those of the others are still to come. Blocks are alike, so that the
    code of one serves all. The products of the output layer stay as they are, chunk by chunk; what lies between
    them becomes a kernel or two. Parameters keep their names.
    """
    teacher = token_loss.teacher
    models = [cast("Any", model).base_model for model in (token_loss.model, *((teacher.model,) if teacher else ()))]
    parts: list[Any] = [block for model in models for block in blocks_of(model)] if by_block else models
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=False, backend=backend)
    token_loss.differentiate = torch.compile(differentiate, dynamic=False, backend=backend)
