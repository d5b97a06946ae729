"""Activation checkpointing: what a block computes is not kept for the backward pass, but computed again there."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from rewarm.errors import UserError

aten: Any = torch.ops.aten
KEPT = frozenset(
    {
        *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
        aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001 - what SDPA becomes
        aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
        aten._scaled_dot_product_cudnn_attention.default,  # noqa: SLF001
        aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
    }
)
"""What `selective` keeps: matrix products and attention, which are nearly all of the time."""


def _policy(_: object, operation: object, *__: object, **___: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recompute(model: Any, kind: str) -> None:  # noqa: ANN401 - a PreTrainedModel, which is untyped
    """Have each block of a model of transformers keep its input alone, or with `selective` its products too.

    Numbers are the same to the last bit. Raises `UserError` for a model that cannot.
    """
    if kind == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # It was renamed within version 5.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable(options)
    except ValueError as error:
        raise UserError(
            f"train.recompute={kind}: this model's blocks cannot be computed again; leave it out"
        ) from error
    assert isinstance(model, nn.Module)
