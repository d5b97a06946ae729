"""Models: where weights come from, and the one thing that training and evaluation ask of them."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rewarm.config import ModelConfig
from rewarm.data.hub import WEIGHTS, download, parse_id
from rewarm.data.tokenizers import ASSETS
from rewarm.errors import CheckpointError, UserError, first_line
from rewarm.rundir import RunFolder

UPSTREAM = ASSETS / "upstream"
"""Checkpoints of the built-in model, one folder for each step of its pre-training."""


@dataclass(frozen=True)
class Init:
    """Where weights come from. `folder` is a Hugging Face folder; None means random weights."""

    name: str
    folder: Path | None


def _steps(parent: Path, pattern: str) -> dict[int, Path]:
    found = {}
    if parent.is_dir():
        for path in parent.iterdir():
            match = re.fullmatch(pattern, path.name)
            if match and (path / "config.json").is_file():
                found[int(match[1])] = path
    return found


def _pick(init: str, revision: str, steps: dict[int, Path]) -> Path:
    """Return the folder of `revision` (`step1000`, `1000`; empty: the last). Names the nearest steps if none."""
    if not steps:
        raise CheckpointError(f"init={init}: there is no checkpoint")
    if not revision:
        return steps[max(steps)]
    match = re.fullmatch(r"(?:step-?)?(\d+)", revision)
    if match is None or int(match[1]) not in steps:
        wanted = int(match[1]) if match else 0
        near = sorted(sorted(steps, key=lambda step: abs(step - wanted))[:4])
        names = ", ".join(f"step{step}" for step in near)
        raise CheckpointError(f"init={init}: there is no checkpoint {revision}; the nearest are {names}")
    return steps[int(match[1])]


def nearest_by_loss(init: str, target: float, curve: Mapping[int, float], steps: Mapping[int, Path]) -> Path:
    """Return the checkpoint whose upstream loss was nearest to `target`, in nats; `curve` has the loss by step.

    So the paper chose its earlier checkpoints: by how far the model still was from converged.
    """
    scored = {step: curve[step] for step in steps if step in curve}
    if not scored:
        raise CheckpointError(f"init={init}: no checkpoint's upstream loss is known; choose one by its step")
    return steps[min(scored, key=lambda step: abs(scored[step] - target))]


def _pretraining_curve() -> dict[int, float]:
    """Return the upstream loss of the built-in checkpoints by step, from the `curve.csv` beside them."""
    path = UPSTREAM / "curve.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["step"]): float(row["upstream_loss"]) for row in csv.DictReader(file)}


def _run_curve(path: Path) -> dict[int, float]:
    return {
        int(row["step"]): row["upstream/loss"] for row in RunFolder(path).read_metrics() if "upstream/loss" in row
    }


def _held(base: str) -> tuple[dict[int, Path], Callable[[], dict[int, float]]] | None:
    """Return the checkpoints of the built-in model or of a run by step, and what gives their upstream losses."""
    if base == "builtin":
        return _steps(UPSTREAM, r"step(\d+)"), _pretraining_curve
    path = Path(base).expanduser()
    if (path / "checkpoints").is_dir():
        return _steps(path / "checkpoints", r"step-(\d+)"), lambda: _run_curve(path)
    return None


def _from_hub(init: str) -> Path:
    repo = parse_id("init", init)
    if (
        repo is None or Path(init.split("/", maxsplit=1)[0]).is_dir()
    ):  # runs/mine is a missing folder, not a repository
        raise CheckpointError(
            f"init={init}: no such checkpoint; give scratch, builtin, a folder, a run's folder or owner/name@revision"
        )
    return download(repo, ["*.json"], WEIGHTS)


def resolve_init(init: str) -> Init:
    """Return where the weights of `init` lie, downloaded if need be. Raises `CheckpointError` where there are none.

    Forms: scratch, builtin, builtin@STEP, builtin@lossX, FOLDER (in Hugging Face's format), RUN, RUN@STEP, RUN@lossX,
    OWNER/NAME@REVISION; `lossX` is the checkpoint whose upstream loss was nearest to X.
    """
    if init == "scratch":
        return Init(init, None)
    base, _, revision = init.partition("@")
    if held := _held(base):
        steps, curve = held
        if target := re.fullmatch(r"loss(\d+\.?\d*)", revision):
            return Init(init, nearest_by_loss(init, float(target[1]), curve(), steps))
        return Init(init, _pick(init, revision, steps))
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file() and not revision:
        return Init(init, folder)
    return Init(init, _from_hub(init))


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


SHAPE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
"""Our names of a shape's numbers, and transformers'."""


def check_shape(init: Init, config: ModelConfig) -> None:
    """Raise `CheckpointError` where the checkpoint is not of the shape that `model` says."""
    if init.folder is None:
        return
    found = _folder_config(f"init={init.name}", init.folder)
    for ours, theirs in SHAPE_KEYS.items():
        wanted = getattr(config, ours)
        if wanted is not None and theirs in found and found[theirs] != wanted:
            raise CheckpointError(
                f"init={init.name}: has {theirs} {found[theirs]}, where model={config.name} has {wanted}; "
                f"choose the model that it is a checkpoint of, or model=hf model.id={init.name.partition('@')[0]}"
            )


def _neox_config(config: ModelConfig) -> Any:  # noqa: ANN401 - transformers' config classes are untyped
    from transformers import GPTNeoXConfig

    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_context,
    }
    if not all(shape.values()):
        raise UserError(
            f"init=scratch: model={config.name} gives no shape; choose a model of conf/model, or a checkpoint"
        )
    options: dict[str, Any] = shape | {
        "rotary_pct": config.rotary_pct,
        "use_parallel_residual": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPTNeoXConfig(**options)


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


def _from_scratch(config: ModelConfig, seed: int, attention: str) -> nn.Module:
    """Return a model of random weights: GPT-NeoX as Pythia's pre-training drew them, others as transformers does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.id is None:
        shape = _neox_config(config)
    else:
        repo, folder = parse_id("model.id", config.id), Path(config.id).expanduser()
        if not folder.is_dir():
            if repo is None:
                raise UserError(f"model.id={config.id}: no such folder, and no hub id (owner/name)")
            folder = download(repo, ["config.json"])
        _folder_config(f"model.id={config.id}", folder)
        shape = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model: nn.Module = auto.from_config(shape, dtype=torch.float32, attn_implementation=attention)
    if shape.model_type == "gpt_neox":
        initialize(model, shape.hidden_size, shape.num_hidden_layers, torch.Generator().manual_seed(seed))
    return model


def _from_folder(init: Init, attention: str) -> nn.Module:
    """Return the model of a checkpoint. Raises `CheckpointError` for one that is damaged, or more than weights."""
    from transformers import AutoModelForCausalLM

    folder, auto = init.folder, cast("Any", AutoModelForCausalLM)
    assert folder is not None
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

    Attention is SDPA, but on CPUs our own (GPT-NeoX) or eager, as torch's fused kernel is slow there.
    """
    from transformers.utils.logging import disable_progress_bar

    from rewarm.attention import use_causal_attention  # which takes transformers' models in

    disable_progress_bar()  # type: ignore[no-untyped-call]  # loading takes no time beside the run's own bar
    attention = "eager" if device.type == "cpu" else "sdpa"
    check_shape(init, config)
    model = _from_scratch(config, seed, attention) if init.folder is None else _from_folder(init, attention)
    wrong = {name for name, p in model.named_parameters() if p.dtype != torch.float32}
    assert not wrong, f"master weights must be FP32: {sorted(wrong)[:3]}"
    use_causal_attention(model, device)
    return model.to(device).train()


def check_fits(model: nn.Module, context: int, vocab_size: int) -> None:
    """Raise `UserError` where the context or the vocabulary is larger than the model's."""
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise UserError(f"train.context={context}: is longer than the model's {longest}; give {longest} or less")
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if vocab_size > rows:
        raise UserError(
            f"data.tokenizer: has {vocab_size} tokens, more than the {rows} rows of the model's embedding; "
            f"use the model's own tokenizer"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
