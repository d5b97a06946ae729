"""Models: random weights of a shape, or a checkpoint's, ready to train."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewarm.config.schema import ModelConfig
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import CheckpointError, DataError, UserError, first_line
from rewarm.hub.asking import parse_id
from rewarm.hub.download import download
from rewarm.model.init import Init
from rewarm.model.shape import ADAMW_BYTES, SIZES, Shape, config_of, known_config, shape_from
from rewarm.runs import checkpoint

log = logging.getLogger(__name__)

GIB = 1 << 30
SHOWN = 3
"""Tokens that are named where there may be many."""


def _folder_config(what: str, folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json. Raises `CheckpointError` where it needs code of its own."""
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads((folder / "config.json").read_text())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{what}: {folder} has no config.json that says what model it is") from error
    if kind not in CONFIG_MAPPING:
        why = "needs code from its repository, which rewarm does not run" if "auto_map" in config else "is unknown"
        raise CheckpointError(f"{what}: a model of type {kind!r} {why}; give one that transformers knows itself")
    return dict(config)


def check_shape(init: Init, config: ModelConfig) -> None:
    """Raise `CheckpointError` where the checkpoint is not of the shape that `model` says."""
    if init.folder is None:
        return
    found = _folder_config(f"init={init.name}", init.folder)
    of_itself = init.name.partition("@")[0] == config.id
    wanted = {} if of_itself else config_of(config) or {}
    for key in ("model_type", *SIZES):
        if key in wanted and key in found and found[key] != wanted[key]:
            raise CheckpointError(
                f"init={init.name}: has {key} {found[key]}, where model={config.name} has {wanted[key]}; "
                f"choose the model that it is a checkpoint of, or model=hf model.id={init.name.partition('@')[0]}"
            )


def _scratch_config(config: ModelConfig) -> Any:  # noqa: ANN401 - transformers' config classes are untyped
    """Return the config of a model that starts from random weights."""
    from transformers import AutoConfig

    if config.id is None:
        shape = config_of(config)
        if shape is None:
            raise UserError(
                f"init=scratch: model={config.name} gives no shape; choose a model of conf/model, or a checkpoint"
            )
        return AutoConfig.for_model(**shape)
    if known := known_config(config.id):
        folder = known.parent
    elif repo := parse_id("model.id", config.id):
        folder = download(repo, ["config.json"])
    else:
        raise UserError(f"model.id={config.id}: no such folder, and no hub id (owner/name)")
    _folder_config(f"model.id={config.id}", folder)
    return AutoConfig.from_pretrained(folder)


def initialize(model: nn.Module, hidden_size: int, layers: int, generator: torch.Generator) -> None:
    """Draw weights as Pythia's pre-training did.

    Matrices and embeddings are normal with std sqrt(2 / (5 hidden)) (`small_init`, Nguyen and Salazar 2019), those
    that write into the residual stream with std 2 / (layers sqrt(hidden)) (`wang_init`); biases 0, LayerNorms 1.
    """
    small, wang = math.sqrt(2 / (5 * hidden_size)), 2 / (layers * math.sqrt(hidden_size))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            parameter.data.normal_(0.0, wang if residual else small, generator=generator)


def _check_memory(config: ModelConfig, shape: Shape, device: torch.device) -> None:
    """Raise `UserError` where the machine has less memory than the weights take, on a CPU with their optimizer."""
    needed = shape.parameters * (ADAMW_BYTES if device.type == "cpu" else 4) / GIB
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if needed > there:
        raise UserError(
            f"model={config.name}: {shape.parameters:,} parameters need {needed:,.0f} GiB, and the machine has "
            f"{there:,.0f} GiB; take a smaller one (model.hidden_size, model.layers, model.intermediate_size)"
        )


def _from_scratch(config: ModelConfig, seed: int, attention: str | None, device: torch.device) -> nn.Module:
    """Return a model of random weights: GPT-NeoX as Pythia's pre-training drew them, others as transformers does."""
    from transformers import AutoModelForCausalLM

    shape = _scratch_config(config)
    if known := shape_from(shape.to_dict()):
        _check_memory(config, known, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model: nn.Module = auto.from_config(shape, dtype=torch.float32, attn_implementation=attention)
    if shape.model_type == "gpt_neox":
        initialize(model, shape.hidden_size, shape.num_hidden_layers, torch.Generator().manual_seed(seed))
    return model


def _from_folder(init: Init, attention: str | None) -> nn.Module:
    """Return the model of a checkpoint. Raises `CheckpointError` for one that is damaged, or more than weights."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # loading takes no time beside the run's own bar
    folder, auto = init.folder, cast("Any", AutoModelForCausalLM)
    assert folder is not None
    if not init.whole:
        checkpoint.check_whole(folder)
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"init={init.name}: its pickle holds more than weights and was not loaded; "
            f"where you trust it, convert it to safetensors"
        ) from error
    except Exception as error:  # a damaged file gives whatever its reader raises
        raise CheckpointError(f"init={init.name}: cannot be loaded ({first_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"init={init.name}: lacks {len(missing)} of the model's weights, {missing[0]} among them"
        )
    loaded: nn.Module = model
    return loaded


def load_model(init: Init, config: ModelConfig, seed: int, device: torch.device) -> nn.Module:
    """Return the model with FP32 weights on `device`, ready to train.

    Attention is SDPA where that can cap and window as the model does. On CPUs it is our own (GPT-NeoX) or eager,
    because torch's fused kernel is slow there.
    """
    from rewarm.model.architectures import disable_dropout
    from rewarm.model.attention import use_causal_attention  # which takes transformers' models in

    attention = "eager" if device.type == "cpu" else None  # None: SDPA, but where it cannot do what the model does
    check_shape(init, config)
    model = _from_scratch(config, seed, attention, device) if init.folder is None else _from_folder(init, attention)
    wrong = {name for name, p in model.named_parameters() if p.dtype != torch.float32}
    assert not wrong, f"master weights must be FP32: {sorted(wrong)[:3]}"
    if not config.dropout:
        disable_dropout(model)
    use_causal_attention(model, device)
    return model.to(device).train()


def load_writer(init: Init, device: torch.device) -> nn.Module:
    """Return the model of a checkpoint on `device`, ready to write: in BF16, on a CPU in FP32."""
    model = _from_folder(init, None)
    return model.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16).eval()


def embedding_rows(model: nn.Module) -> int:
    """Return the number of token ids that a model has a row of its embedding for."""
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return weight.shape[0]


def check_fits(model: nn.Module, context: int, tokenizer: Tokenizer, key: str = "train.context") -> None:
    """Raise `UserError` where `context` is longer than the model's, or text can become ids that it has no row for.

    `key` is what says the context.

    Special tokens may lie beyond the rows, because ordinary text never becomes one: Gemma 3's tokenizer has one for
    images. Where the data hold one all the same, `check_ids` stops the run.
    """
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise UserError(f"{key}={context}: is longer than the model's {longest}; give {longest} or less")
    rows = embedding_rows(model)
    beyond = tokenizer.beyond(rows)
    if not all(beyond.values()):
        raise UserError(
            f"data.tokenizer: has {tokenizer.size} tokens, more than the {rows} rows of the model's embedding; "
            f"use the model's own tokenizer"
        )
    if beyond:
        log.info(
            "data.tokenizer: the model has no row for %s; a run stops where the text holds this",
            ", ".join(sorted(beyond)[:SHOWN]) + (", …" if len(beyond) > SHOWN else ""),
        )


def check_ids(windows: NDArray[np.int64], model: nn.Module) -> None:
    """Raise `DataError` where windows hold a token id that the model has no row for.

    On a GPU the embedding itself would end the process, without a word about the data.
    """
    rows = embedding_rows(model)
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= rows:
        raise DataError(
            f"the data hold the token id {low if low < 0 else high}, and the model has the ids 0 to {rows - 1}: a "
            f"text holds the name of a special token, or the tokens are damaged or those of another tokenizer; take "
            f"the text out, or set data.tokenizer to the model's own"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
