"""What a run will cost, worked out from its config alone: no network, no model, no data (`dry_run=true`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rewarm.commands.arms import Arm
from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import Config
from rewarm.data.prepare import needed_tokens, writes_first
from rewarm.model.shape import ADAMW_BYTES, Shape, shape_of
from rewarm.schedules import landmarks, lr_curve
from rewarm.text import text_table, tokens_text

SPEEDS = (1e4, 1e5, 1e6)
"""Tokens/s for which hours are given where none is asked for."""
WRITTEN_SPEEDS = (1e3, 1e4)
"""Likewise of writing, which draws one token after the other."""
GIB = 1 << 30
CHECKPOINT_BYTES = 12
"""Bytes a parameter on disk: weight and both moments in FP32."""


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


def _checkpoint_bytes(config: Config, shape: Shape) -> int:
    return (CHECKPOINT_BYTES + (4 if config.average.half_life else 0)) * shape.parameters


def _disk(config: Config, plan: Plan, shape: Shape | None) -> list[tuple[str, str]]:
    rows = []
    if shape is not None:
        one = _checkpoint_bytes(config, shape)
        saved = sum(plan.saves(step) for step in range(1, plan.steps + 1))
        kept = saved if config.checkpoint.keep == 0 else min(saved, config.checkpoint.keep + len(plan.milestones))
        rows.append(("checkpoints", f"{_size(one)} each, {kept:,} kept: {_size(one * kept)}"))
    validation = config.data.validation_tokens
    token_bytes = 2 if shape is None or shape.vocab <= 2**16 else 4
    stores = needed_tokens(config, plan) | {"validation": 2 * validation}
    rows += [
        (f"{side} tokens", f"{tokens:,}: {_size(tokens * token_bytes)} in the cache")
        for side, tokens in stores.items()
    ]
    return rows


def _compute(config: Config, plan: Plan, shape: Shape) -> list[tuple[str, str]]:
    tokens = plan.steps * plan.tokens_per_step
    validation = 2 * config.data.validation_tokens
    evaluations = 1 + sum(plan.evaluates(step) for step in range(1, plan.steps + 1))
    training = shape.flops(config.train.context) * tokens
    # A forward pass is a third of a training step.
    scoring = shape.flops(config.train.context) / 3 * validation * evaluations
    return [
        ("evaluations", f"{evaluations:,} of {validation:,} tokens"),
        ("FLOPs", f"{training:.3g} to train, {scoring:.3g} to evaluate"),
    ]


def _written(config: Config, plan: Plan, shape: Shape | None) -> str:
    """Return what the start model has to write before training begins: about a forward pass for each token."""
    tokens = needed_tokens(config, plan)["replay"]
    cost = f", {shape.flops(config.train.context) / 3 * tokens:.3g} FLOPs" if shape else ""
    hours = ", ".join(f"{_duration(tokens / speed / 3600)} at {speed:,.0f} tokens/s" for speed in WRITTEN_SPEEDS)
    return f"{tokens:,} tokens are written first{cost}; {hours}"


def _hours(config: Config, plan: Plan) -> list[tuple[str, str]]:
    tokens = plan.steps * plan.tokens_per_step
    given = config.train.tokens_per_second
    speeds = (given,) if given else SPEEDS
    return [(f"  at {speed:,.0f} tokens/s", _duration(tokens / speed / 3600)) for speed in speeds]


def describe(config: Config, plan: Plan) -> str:
    """Return what the run of `config` would be: sizes, steps, learning rates, disk, FLOPs and hours."""
    shape = shape_of(config.model)
    rows: list[tuple[str, str]] = []
    if shape is None:
        rows.append(("model", f"{config.model.name}: its size is not known before it is loaded"))
    else:
        sizes = f"{shape.parameters:,} parameters, {shape.blocks:,} without embeddings"
        rows.append(("model", f"{config.model.name}: {sizes}"))
    rows += [
        ("init", config.init),
        ("data", f"{config.data.name}, trained on {config.data.train}, replay {config.replay:g}"),
        ("budget", f"{plan.steps * plan.tokens_per_step:,} tokens: {plan.steps:,} steps of {plan.tokens_per_step:,}"),
        ("schedule", f"{config.schedule.name} over {plan.schedule.total_steps:,} steps"),
        *_learning_rate(plan),
        *([("", early)] if (early := plan.early_stop()) else []),
    ]
    if writes_first(config):
        rows.append(("self-replay", _written(config, plan, shape)))
    if shape is not None:
        rows += _compute(config, plan, shape)
        averaged = config.average.half_life and config.average.device == "model"
        copies = {"the start": config.anchor.l2, "the teacher": config.anchor.kl, "the average": averaged}
        more = [name for name, there in copies.items() if there]
        states = (ADAMW_BYTES + 4 * len(more)) * shape.parameters / GIB
        rows.append(
            (
                "memory",
                f"{states:.2f} GiB for {', '.join(['weights', 'gradients', 'AdamW', *more])}, and activations beside",
            )
        )
    rows += [*_disk(config, plan, shape), ("time, without evaluation", ""), *_hours(config, plan)]
    width = max(len(name) for name, _ in rows) + 2
    return "".join(f"{name:<{width}}{value}".rstrip() + "\n" for name, value in rows)


def describe_sweep(arms: Sequence[Arm], trials: int | None = None) -> str:
    """Return what the runs of a sweep would be together: a line for each, and the sum.

    A run that begins as another stands under it. Where Optuna chooses there is one arm, an example of the `trials`.
    """
    plans = {arm.name: make_plan(arm.config) for arm in arms}
    rows = []
    alone = together = 0
    for depth, arm in _in_order(arms, None, 0):
        config, plan = arm.config, plans[arm.name]
        begins = arm.begins.step if arm.begins else 0
        trained = (plan.steps - begins) * plan.tokens_per_step
        alone += plan.steps * plan.tokens_per_step
        together += trained
        settings = (config.schedule.name, f"{config.max_lr:g}", f"{config.replay:g}")
        name = "  " * depth + arm.name
        rows.append((name, *settings, f"{begins:,}" if begins else "", f"{plan.steps:,}", tokens_text(trained)))
    table = text_table(("run", "schedule", "max LR", "replay", "from step", "steps", "tokens"), rows)
    runs = f"{len(arms)} runs" if trials is None else f"{trials} runs like this one, each of other values"
    alone, together = (tokens * (trials or 1) for tokens in (alone, together))
    lines = [f"{runs}, {alone:,} tokens"]
    if together < alone:
        fewer = f"{alone / together:.2f} times fewer; sweep.share=false trains each alone"
        lines = [f"{runs}, {alone:,} tokens alone and {together:,} with what they share trained once ({fewer})"]
        lines += _branch_points(arms, plans)
    given = arms[0].config.train.tokens_per_second
    speeds = (given,) if given else SPEEDS
    hours = ", ".join(f"{_duration(together / speed / 3600)} at {speed:,.0f} tokens/s" for speed in speeds)
    lines.append(f"one after the other {hours}, without evaluation")
    return f"{table}\n" + "".join(f"{line}\n" for line in lines)


def _in_order(arms: Sequence[Arm], of: str | None, depth: int) -> Iterator[tuple[int, Arm]]:
    """Yield the arms that begin as the one named `of`, each with its depth, and after each those that begin as it."""
    for arm in arms:
        if (arm.begins.name if arm.begins else None) == of:
            yield depth, arm
            yield from _in_order(arms, arm.name, depth + 1)


def _branch_points(arms: Sequence[Arm], plans: Mapping[str, Plan]) -> list[str]:
    """Return the line about the disk that is needed for what is saved for other runs."""
    shape = shape_of(arms[0].config.model)
    points = sum(len({a.begins.step for a in arms if a.begins and a.begins.name == name}) for name in plans)
    if shape is None:
        return []
    size = _size(points * _checkpoint_bytes(arms[0].config, shape))
    return [f"where they part {points} checkpoints are kept until all that begin there have begun: {size} at most"]
