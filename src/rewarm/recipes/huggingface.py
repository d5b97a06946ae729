"""Recipes for transformers' Trainer, and for axolotl and LLaMA-Factory, which hand their schedules to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewarm.recipes.curves import MICRO, decay_left, decayed, mixture_notes, nearest_family, stop_notes, warmed
from rewarm.recipes.recipe import Array, Export, Recipe, as_yaml


def _hf_schedule(recipe: Recipe) -> tuple[dict[str, Any], Callable[[Array], Array], list[str]]:
    """Return a schedule of transformers (`optimization.py`, v5): its settings, its curve, and notes."""
    spec, warmup = recipe.spec, recipe.spec.warmup_steps
    family, decay, notes = nearest_family(recipe, ("constant", "linear", "cosine", "wsd", "inverse_sqrt"))
    options: dict[str, Any] = {}

    def constant(done: Array) -> Array:
        return np.ones_like(done)

    def falling(done: Array) -> Array:
        progress = (done - warmup) / max(1, spec.total_steps - warmup)
        return recipe.min_ratio + (1 - recipe.min_ratio) * decay_left(decay, progress)

    def wsd(done: Array) -> Array:
        return decayed(recipe, done, decay)

    timescale = max(1, round(spec.timescale * spec.total_steps))

    def inverse_sqrt(done: Array) -> Array:
        return 1 / np.sqrt(np.maximum(done - warmup, 0) / timescale + 1)

    if family == "constant":
        name, after = "constant_with_warmup" if warmup else "constant", constant
    elif family == "linear":
        name, after, options = "polynomial", falling, {"lr_end": recipe.min_lr, "power": 1.0}
    elif family == "cosine":
        name, after, options = "cosine_with_min_lr", falling, {"min_lr": recipe.min_lr}
    elif family == "wsd":
        name, after = "warmup_stable_decay", wsd
        options = {"num_decay_steps": recipe.decay_steps, "decay_type": decay, "min_lr_ratio": recipe.min_ratio}
    else:
        name, after, options = "inverse_sqrt", inverse_sqrt, {"timescale": timescale}
        notes.append("the LR has no floor: rewarm stops it at min_lr")

    def curve(t: Array) -> Array:
        done = t - 1
        shares = warmed(done, warmup, after(done))
        if family == "wsd":  # its warm-up starts at the minimum and not at 0
            rising = recipe.min_ratio + (1 - recipe.min_ratio) * done / max(1, warmup)
            shares = np.where(done < warmup, rising, shares)
        return spec.max_lr * shares

    settings = {"learning_rate": spec.max_lr, "lr_scheduler_type": name}
    if options:
        settings["lr_scheduler_kwargs"] = options
    return settings | {"warmup_steps": warmup, "max_steps": spec.total_steps}, curve, notes + stop_notes(recipe)


def _hf_optimizer(recipe: Recipe) -> dict[str, Any]:
    o = recipe.optimizer
    return {
        "optim": "adamw_torch_fused",
        "adam_beta1": o.beta1,
        "adam_beta2": o.beta2,
        "adam_epsilon": o.eps,
        "weight_decay": o.weight_decay,
        "max_grad_norm": o.clip,
        "fp16": recipe.precision == "fp16",
        "bf16": recipe.precision == "bf16",
    }


def _hf_batch(recipe: Recipe) -> dict[str, Any]:
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": recipe.sequences}


def transformers(recipe: Recipe) -> Export:
    """Return `TrainingArguments`, as `HfArgumentParser.parse_yaml_file` reads them."""
    schedule, curve, notes = _hf_schedule(recipe)
    settings = {"output_dir": "out", **schedule, **_hf_batch(recipe), **_hf_optimizer(recipe), "seed": recipe.seed}
    notes = [
        *notes,
        MICRO,
        f"sequences of {recipe.context:,} tokens and the weights ({recipe.model}) are your script's to set",
        *mixture_notes(recipe),
    ]
    return Export("transformers 5, TrainingArguments", as_yaml(settings), curve, tuple(notes))


def axolotl(recipe: Recipe) -> Export:
    """Return a config of axolotl, which hands its schedule to transformers."""
    schedule, curve, notes = _hf_schedule(recipe)
    schedule["lr_scheduler"] = schedule.pop("lr_scheduler_type")
    optimizer = _hf_optimizer(recipe)
    optimizer["optimizer"] = optimizer.pop("optim")
    settings = {
        "base_model": recipe.model,
        "pretraining_dataset": [{"path": recipe.trained}],
        "sequence_len": recipe.context,
        "sample_packing": True,
        **schedule,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": recipe.sequences,
        **optimizer,
        "seed": recipe.seed,
        "output_dir": "out",
    }
    return Export("axolotl", as_yaml(settings), curve, (*notes, MICRO, *mixture_notes(recipe)))


def llamafactory(recipe: Recipe) -> Export:
    """Return a config of LLaMA-Factory, which hands its schedule to transformers and mixes data sets itself."""
    schedule, curve, notes = _hf_schedule(recipe)
    data: dict[str, Any] = {"dataset": "downstream"}
    if recipe.replayed is not None:
        data = {
            "dataset": "downstream,upstream",
            "mix_strategy": "interleave_over",
            "interleave_probs": f"{1 - recipe.replay:g},{recipe.replay:g}",
        }
        notes.append("replay: probabilities of examples, not of tokens as in rewarm")
    settings = {
        "stage": "pt",
        "finetuning_type": "full",
        "model_name_or_path": recipe.model,
        **data,
        "streaming": True,
        "cutoff_len": recipe.context,
        "packing": True,
        **schedule,
        **_hf_batch(recipe),
        **_hf_optimizer(recipe),
        "seed": recipe.seed,
        "output_dir": "out",
    }
    names = f"dataset_info.json must call {recipe.trained} downstream"
    names += f" and {recipe.replayed} upstream" if recipe.replayed else ""
    return Export("LLaMA-Factory", as_yaml(settings), curve, (*notes, names, MICRO))
