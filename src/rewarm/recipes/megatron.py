"""Recipes for the Megatron family: Megatron-LM, GPT-NeoX and nanotron."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewarm.recipes.curves import MICRO, decay_left, decayed, mixture_notes, nearest_family, warmed
from rewarm.recipes.recipe import Array, Export, Recipe, as_yaml


def _blend(recipe: Recipe) -> str:
    """Return Megatron's blend of data sets: a weight before each."""
    if recipe.replayed is None:
        return recipe.trained
    return f"{1 - recipe.replay:g} {recipe.trained} {recipe.replay:g} {recipe.replayed}"


def megatron(recipe: Recipe) -> Export:
    """Return flags of Megatron-LM; the curve is `core/optimizer_param_scheduler.py`."""
    spec, o = recipe.spec, recipe.optimizer
    family, decay, notes = nearest_family(recipe, ("constant", "linear", "cosine", "wsd"))

    def curve(t: Array) -> Array:
        done = t - 1
        after = np.ones_like(done) if family == "constant" else decayed(recipe, done, decay)
        return spec.max_lr * warmed(done, spec.warmup_steps, after)

    flags: dict[str, object] = {
        "lr": spec.max_lr,
        "min-lr": recipe.min_lr,
        "lr-decay-style": "WSD" if family == "wsd" else family,
        "lr-warmup-iters": spec.warmup_steps,
        "lr-decay-iters": spec.total_steps,
        "train-iters": recipe.steps,
    }
    if family == "wsd":
        flags["lr-wsd-decay-style"] = "minus_sqrt" if decay == "1-sqrt" else decay
        flags["lr-wsd-decay-iters"] = recipe.decay_steps
    flags |= {
        "override-opt_param-scheduler": "",
        "finetune": "",
        "load": recipe.model,
        "optimizer": "adam",
        "adam-beta1": o.beta1,
        "adam-beta2": o.beta2,
        "adam-eps": o.eps,
        "weight-decay": o.weight_decay,
        "clip-grad": o.clip,
        "global-batch-size": recipe.sequences,
        "seq-length": recipe.context,
        "data-path": _blend(recipe),
        "seed": recipe.seed,
    }
    if recipe.precision != "fp32":
        flags[recipe.precision] = ""
    text = "".join(f"--{name} {value}".rstrip() + "\n" for name, value in flags.items())
    return Export("Megatron-LM", text, curve, tuple(notes))


def gpt_neox(recipe: Recipe) -> Export:
    """Return a config of GPT-NeoX; the curve is its `learning_rates.py`, for `cosine_neox` in the older form."""
    spec, o = recipe.spec, recipe.optimizer
    family, _, notes = nearest_family(recipe, ("constant", "linear", "cosine"))
    if spec.name == "cosine_neox":
        notes = ["the cosine is that of GPT-NeoX before it took min_lr into the formula (commit 0535bfbb)"]
    total, warmup = spec.total_steps, spec.warmup_steps

    def curve(t: Array) -> Array:
        done = t - 1
        if family == "constant":
            after = np.ones_like(done)
        elif spec.name == "cosine_neox":
            progress = (np.minimum(done, total - warmup) - warmup) / total
            after = np.maximum(recipe.min_ratio, decay_left("cosine", progress))
        else:
            left = decay_left(family, (np.minimum(done, total - warmup) - warmup) / max(1, total - warmup))
            floor = recipe.min_ratio
            after = floor + (1 - floor) * left if family == "cosine" else np.maximum(floor, left)
        return spec.max_lr * warmed(done, warmup, after)

    settings: dict[str, Any] = {
        "train_iters": recipe.steps,
        "lr_decay_iters": total,
        "lr_decay_style": family,
        "warmup": warmup / total,
        "min_lr": recipe.min_lr,
        "optimizer": {"type": "Adam", "params": {"lr": spec.max_lr, "betas": [o.beta1, o.beta2], "eps": o.eps}},
        "override_lr_scheduler": True,
        "finetune": True,
        "weight_decay": o.weight_decay,
        "gradient_clipping": o.clip,
        "seq_length": recipe.context,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": recipe.sequences,
        "load": recipe.model,
        "train_data_paths": [recipe.trained, *([recipe.replayed] if recipe.replayed else [])],
        "seed": recipe.seed,
    }
    if recipe.replayed:
        settings["train_data_weights"] = [1 - recipe.replay, recipe.replay]
    if recipe.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 12, "loss_scale_window": 1000, "hysteresis": 2}
    else:
        settings["precision"] = {"bf16": "bfloat16"}.get(recipe.precision, "fp32")
    return Export("GPT-NeoX", as_yaml(settings), curve, (*notes, MICRO))


def nanotron(recipe: Recipe) -> Export:
    """Return a part of a nanotron config; the curve is `helpers.py`, `lr_scheduler_builder`."""
    spec, o = recipe.spec, recipe.optimizer
    family, decay, notes = nearest_family(recipe, ("constant", "linear", "cosine", "wsd"))
    if decay == "1-sqrt":
        decay = "linear"
        notes.append("decay_shape 1-sqrt: written as linear")
    start = spec.total_steps - recipe.decay_steps
    scheduler: dict[str, Any] = {
        "learning_rate": spec.max_lr,
        "lr_warmup_steps": spec.warmup_steps,
        "lr_warmup_style": "linear",
        "lr_decay_style": "linear" if family == "constant" else decay,
        "lr_decay_starting_step": start,
        "lr_decay_steps": recipe.decay_steps,
        "min_decay_lr": spec.max_lr if family == "constant" else recipe.min_lr,
    }

    def curve(t: Array) -> Array:
        done = t - 1
        after = np.ones_like(done) if family == "constant" else decayed(recipe, done, decay)
        return spec.max_lr * warmed(done, spec.warmup_steps, after)

    settings = {
        "optimizer": {
            "learning_rate_scheduler": scheduler,
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": o.beta1,
                "adam_beta2": o.beta2,
                "adam_eps": o.eps,
                "torch_adam_is_fused": True,
            },
            "weight_decay": o.weight_decay,
            "clip_grad": o.clip,
            "accumulate_grad_in_fp32": True,
            "zero_stage": 0,
        },
        "tokens": {
            "sequence_length": recipe.context,
            "train_steps": recipe.steps,
            "micro_batch_size": 1,
            "batch_accumulation_per_replica": recipe.sequences,
        },
    }
    return Export("nanotron", as_yaml(settings), curve, (*notes, MICRO, *mixture_notes(recipe)))
