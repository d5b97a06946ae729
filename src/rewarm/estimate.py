"""What a run will cost, worked out from its config alone: no network, no model, no data (`dry_run=true`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewarm.checks import parse_tokens
from rewarm.config import Config, ModelConfig
from rewarm.data.prepare import needed_tokens
from rewarm.plan import Plan, make_plan
from rewarm.schedules import landmarks, lr_curve

SPEEDS = (1e4, 1e5, 1e6)
"""Tokens/s for which hours are given where none is asked for."""
GIB = 1 << 30
ADAMW_BYTES = 16
"""Bytes a parameter in memory: weight, gradient and both moments in FP32."""
CHECKPOINT_BYTES = 12
"""Bytes a parameter on disk: weight and both moments in FP32."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that its costs follow from."""

    vocab: int
    hidden: int
    layers: int
    intermediate: int
    tied: bool = False

    @property
    def blocks(self) -> int:
        """Return the parameters of GPT-NeoX's blocks and last LayerNorm."""
        h, f = self.hidden, self.intermediate
        attention = 4 * h * h + 4 * h
        return self.layers * (attention + 2 * h * f + f + h + 4 * h) + 2 * h

    @property
    def embeddings(self) -> int:
        """Return the parameters of the input embedding, and of the output's where it is another matrix."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    def flops(self, context: int) -> int:
        """Return the floating-point operations that training takes for one token.

        6 for each parameter that multiplies (blocks and output), and 12 * layers * hidden * context for attention,
        counted in full although half of it is masked (Chowdhery et al. 2022, appendix B).
        """
        return 6 * (self.blocks + self.vocab * self.hidden) + 12 * self.layers * self.hidden * context


def shape_of(model: ModelConfig) -> Shape | None:
    """Return the shape that a config gives, or a config.json that is on this machine; None for another."""
    if model.vocab_size and model.hidden_size and model.layers and model.intermediate_size:
        return Shape(model.vocab_size, model.hidden_size, model.layers, model.intermediate_size)
    path = _local_config(model.id) if model.id else None
    if path is None:
        return None
    found = json.loads(path.read_text())
    try:
        hidden = found["hidden_size"]
        return Shape(
            found["vocab_size"],
            hidden,
            found["num_hidden_layers"],
            found.get("intermediate_size") or 4 * hidden,
            bool(found.get("tie_word_embeddings", True)),
        )
    except KeyError:
        return None


def flops_per_token(config: Config) -> int | None:
    """Return the floating-point operations of training for one token; None where the model's shape is not known."""
    shape = shape_of(config.model)
    return shape.flops(config.train.context) if shape else None


def _local_config(name: str) -> Path | None:
    path = Path(name).expanduser() / "config.json"
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition("@")
    cached = try_to_load_from_cache(repo, "config.json", revision=revision or None) if "/" in repo else None
    return Path(cached) if isinstance(cached, str) else None


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:,.1f} {unit}" if unit != "B" else f"{n_bytes:,.0f} B"
        n_bytes /= 1000
    raise AssertionError


def _duration(hours: float) -> str:
    return f"{hours * 60:,.1f} minutes" if hours < 1 else f"{hours:,.1f} hours"


def _learning_rate(plan: Plan) -> list[tuple[str, str]]:
    marks = {name: step for name, step in landmarks(plan.schedule).items() if step <= plan.steps}
    if plan.steps < plan.schedule.total_steps:
        marks["stop"] = plan.steps
    curve = lr_curve(plan.schedule, np.array(list(marks.values())))
    return [
        (f"  at {name}", f"{lr:.4g} (step {step:,}, {step * plan.tokens_per_step:,} tokens)")
        for (name, step), lr in zip(marks.items(), curve.tolist(), strict=True)
    ]


def _disk(config: Config, plan: Plan, shape: Shape | None) -> list[tuple[str, str]]:
    rows = []
    if shape is not None:
        one = CHECKPOINT_BYTES * (shape.blocks + shape.embeddings)
        saved = sum(plan.saves(step) for step in range(1, plan.steps + 1))
        kept = saved if config.checkpoint.keep == 0 else min(saved, config.checkpoint.keep + len(plan.milestones))
        rows.append(("checkpoints", f"{_size(one)} each, {kept:,} kept: {_size(one * kept)}"))
    validation = parse_tokens("data.validation_tokens", config.data.validation_tokens)
    token_bytes = 2 if shape is None or shape.vocab <= 2**16 else 4
    stores = needed_tokens(config, plan) | {"validation": 2 * validation}
    rows += [
        (f"{side} tokens", f"{tokens:,}: {_size(tokens * token_bytes)} in the cache")
        for side, tokens in stores.items()
    ]
    return rows


def _compute(config: Config, plan: Plan, shape: Shape) -> list[tuple[str, str]]:
    tokens = plan.steps * plan.tokens_per_step
    validation = 2 * parse_tokens("data.validation_tokens", config.data.validation_tokens)
    evaluations = 1 + sum(plan.evaluates(step) for step in range(1, plan.steps + 1))
    training = shape.flops(config.train.context) * tokens
    # A forward pass is a third of a training step.
    scoring = shape.flops(config.train.context) / 3 * validation * evaluations
    return [
        ("evaluations", f"{evaluations:,} of {validation:,} tokens"),
        ("FLOPs", f"{training:.3g} to train, {scoring:.3g} to evaluate"),
    ]


def _hours(config: Config, plan: Plan) -> list[tuple[str, str]]:
    tokens = plan.steps * plan.tokens_per_step
    given = config.train.tokens_per_second
    speeds = (given,) if given else SPEEDS
    return [(f"  at {speed:,.0f} tokens/s", _duration(tokens / speed / 3600)) for speed in speeds]


def describe(config: Config) -> str:
    """Return what the run of `config` would be: sizes, steps, learning rates, disk, FLOPs and hours."""
    plan, shape = make_plan(config), shape_of(config.model)
    rows: list[tuple[str, str]] = []
    if shape is None:
        rows.append(("model", f"{config.model.name}: its size is known once it has been downloaded"))
    else:
        total = shape.blocks + shape.embeddings
        rows.append(("model", f"{config.model.name}: {total:,} parameters, {shape.blocks:,} without embeddings"))
    rows += [
        ("init", config.init),
        ("data", f"{config.data.name}, trained on {config.data.train}, replay {config.replay:g}"),
        ("budget", f"{plan.steps * plan.tokens_per_step:,} tokens: {plan.steps:,} steps of {plan.tokens_per_step:,}"),
        ("schedule", f"{config.schedule.name} over {plan.schedule.total_steps:,} steps"),
        *_learning_rate(plan),
    ]
    if shape is not None:
        rows += _compute(config, plan, shape)
        states = ADAMW_BYTES * (shape.blocks + shape.embeddings) / GIB
        rows.append(("memory", f"{states:.2f} GiB for weights, gradients and AdamW, and activations beside"))
    rows += [*_disk(config, plan, shape), ("time, without evaluation", ""), *_hours(config, plan)]
    width = max(len(name) for name, _ in rows) + 2
    return "".join(f"{name:<{width}}{value}".rstrip() + "\n" for name, value in rows)
