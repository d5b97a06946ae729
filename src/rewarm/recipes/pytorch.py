"""Recipes for torchtitan, OLMo-core and litgpt."""

from __future__ import annotations

import numpy as np

from rewarm.recipes.curves import decay_left, decayed, mixture_notes, nearest_family, stop_notes, warmed
from rewarm.recipes.recipe import Array, Export, Recipe, as_yaml


def torchtitan(recipe: Recipe) -> Export:
    """Return a job config of torchtitan; its curve is `components/lr_scheduler.py` of 2025, with `min_lr_factor`."""
    spec, o = recipe.spec, recipe.optimizer
    family, decay, notes = nearest_family(recipe, ("constant", "linear", "cosine", "wsd"))
    decay_steps = 0 if family == "constant" else recipe.decay_steps
    stable = spec.total_steps + 1 - spec.warmup_steps - decay_steps

    def curve(t: Array) -> Array:
        after = np.ones_like(t)
        if decay_steps:
            left = decay_left(decay, (t - spec.warmup_steps - stable) / decay_steps)
            after = recipe.min_ratio + (1 - recipe.min_ratio) * left
        return spec.max_lr * np.where(t <= spec.warmup_steps, t / max(1, spec.warmup_steps), after)

    ratio = decay_steps / spec.total_steps
    text = f"""\
[optimizer]
name = "AdamW"
lr = {spec.max_lr!r}
beta1 = {o.beta1!r}
beta2 = {o.beta2!r}
eps = {o.eps!r}
weight_decay = {o.weight_decay!r}

[lr_scheduler]
total_steps = {spec.total_steps}
warmup_steps = {spec.warmup_steps}
decay_ratio = {ratio!r}
decay_type = "{"sqrt" if decay == "1-sqrt" else "linear" if family == "constant" else decay}"
min_lr_factor = {recipe.min_ratio!r}

[training]
steps = {recipe.steps}
seq_len = {recipe.context}
global_batch_size = {recipe.sequences}
max_norm = {o.clip!r}

[checkpoint]
enable = true
initial_load_path = "{recipe.model}"
initial_load_in_hf = true
"""
    if recipe.precision == "fp16":
        notes.append("FP16 with a loss scale: torchtitan has none; it trains in BF16")
    return Export("torchtitan", text, curve, (*notes, *mixture_notes(recipe)))


def olmo_core(recipe: Recipe) -> Export:
    """Return the optimizer and schedule of an OLMo-core script; the curve is its `optim/scheduler.py`."""
    spec, o = recipe.spec, recipe.optimizer
    family, _, notes = nearest_family(recipe, ("constant", "linear", "cosine", "wsd"))
    warmup = f"warmup_steps={spec.warmup_steps}"
    if family == "constant":
        scheduler = f"ConstantWithWarmup({warmup})"
    elif family == "wsd":
        scheduler = (
            f"WSD({warmup}, decay_steps={recipe.decay_steps}, decay_fraction=None, decay_min_lr={recipe.min_lr!r})"
        )
        if spec.decay_shape != "linear":
            notes.append(f"decay_shape {spec.decay_shape}: OLMo-core's WSD decays along a line")
    else:
        kind = "CosWithWarmup" if family == "cosine" else "LinearWithWarmup"
        scheduler = f"{kind}({warmup}, alpha_f={recipe.min_ratio!r}, t_max={spec.total_steps})"

    def curve(t: Array) -> Array:
        after = np.ones_like(t)
        if family != "constant":
            after = decayed(recipe, t, "cosine" if family == "cosine" else "linear")
        return spec.max_lr * np.where(t <= spec.warmup_steps, t / max(1, spec.warmup_steps), after)

    text = f"""\
from olmo_core.optim import {scheduler.partition("(")[0]}, OptimGroupOverride, SkipStepAdamWConfig
from olmo_core.train import Duration

optim = SkipStepAdamWConfig(
    lr={spec.max_lr!r}, betas=({o.beta1!r}, {o.beta2!r}), eps={o.eps!r}, weight_decay={o.weight_decay!r}
)
scheduler = {scheduler}
max_grad_norm = {o.clip!r}
max_duration = Duration.steps({recipe.steps})
global_batch_size = {recipe.sequences * recipe.context}  # tokens
sequence_length = {recipe.context}
load_path = {recipe.model!r}  # in OLMo-core's format; load_trainer_state=False
"""
    return Export("OLMo-core", text, curve, (*notes, *mixture_notes(recipe)))


def litgpt(recipe: Recipe) -> Export:
    """Return a config of `litgpt pretrain`, which has a cosine alone; the curve is `get_lr` of its `pretrain.py`."""
    spec, o = recipe.spec, recipe.optimizer
    _, _, notes = nearest_family(recipe, ("cosine",))

    def curve(t: Array) -> Array:
        done = t - 1
        return spec.max_lr * warmed(done, spec.warmup_steps, _decayed_whole(recipe, done))

    settings = {
        "initial_checkpoint_dir": recipe.model,
        "train": {
            "global_batch_size": recipe.sequences,
            "micro_batch_size": recipe.sequences,
            "lr_warmup_steps": spec.warmup_steps,
            "max_tokens": spec.total_steps * recipe.sequences * recipe.context,
            "max_seq_length": recipe.context,
            "max_norm": o.clip,
            "min_lr": recipe.min_lr,
        },
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": spec.max_lr,
                "betas": [o.beta1, o.beta2],
                "eps": o.eps,
                "weight_decay": o.weight_decay,
            },
        },
        "precision": {"fp16": "16-mixed", "bf16": "bf16-mixed"}.get(recipe.precision, "32-true"),
        "seed": recipe.seed,
    }
    return Export("litgpt", as_yaml(settings), curve, (*notes, *stop_notes(recipe), *mixture_notes(recipe)))


def _decayed_whole(recipe: Recipe, done: Array) -> Array:
    """Return shares of the maximum LR for a cosine over all that comes after the warm-up."""
    start, end = recipe.spec.warmup_steps, recipe.spec.total_steps
    left = decay_left("cosine", (done - start) / max(1, end - start))
    return recipe.min_ratio + (1 - recipe.min_ratio) * left
