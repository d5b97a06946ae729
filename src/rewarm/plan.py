"""What a config means in steps: the frozen numbers that the loop, the preview and the estimate share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from rewarm.checks import parse_tokens
from rewarm.config import Config
from rewarm.errors import UserError
from rewarm.schedules import ScheduleSpec


@dataclass(frozen=True)
class Plan:
    """A run in steps. Step 0 is the state before the first update."""

    tokens_per_step: int
    steps: int
    """Updates that the budget pays for."""
    schedule: ScheduleSpec
    log_every: int
    evaluate_every: int
    evaluate_dense_every: int
    dense_steps: int
    """Up to this step evaluation is dense."""
    save_every: int
    milestones: tuple[int, ...]
    """Steps whose checkpoint is saved and never removed."""

    def logs(self, step: int) -> bool:
        """Return whether training metrics are written at `step`."""
        return step % self.log_every == 0 or step == self.steps or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Return whether both validation sets are scored at `step`."""
        every = self.evaluate_dense_every if step <= self.dense_steps else self.evaluate_every
        return step % every == 0 or step in (self.steps, self.schedule.warmup_steps)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written at `step`."""
        return step > 0 and (step % self.save_every == 0 or step == self.steps or step in self.milestones)


def schedule_spec(config: Config, horizon_steps: int) -> ScheduleSpec:
    """Return the learning-rate curve of a config whose horizon is `horizon_steps` updates."""
    shape = {
        f.name: getattr(config.schedule, f.name)
        for f in fields(config.schedule)
        if getattr(config.schedule, f.name) is not None
    }
    return ScheduleSpec(
        max_lr=config.max_lr,
        min_lr=config.min_lr_ratio * config.max_lr,
        warmup_steps=round(config.warmup * horizon_steps),
        total_steps=horizon_steps,
        **shape,
    )


def make_plan(config: Config, extensions: Sequence[Mapping[str, Any]] = ()) -> Plan:
    """Return the plan of a config. Raises `UserError` where the budget or the horizon is under one step.

    `extensions` (in `manifest.json` of an extended run) tells for each extension the last step before it, `after`,
    and the `budget` and `horizon` until then: up to there the learning rates are those that were run.
    """
    tokens_per_step = config.train.batch_size * config.train.context

    def steps(name: str, value: object) -> int:
        tokens = parse_tokens(name, value)
        if tokens < tokens_per_step:
            raise UserError(f"{name}={value}: is less than one step of {tokens_per_step:,} tokens")
        # To the nearest step, so that 296.86B tokens are the paper's 131,296 steps.
        return round(tokens / tokens_per_step)

    def horizon_steps(asked: Config) -> int:
        return steps("budget", asked.budget) if asked.horizon is None else steps("horizon", asked.horizon)

    spec = schedule_spec(config, horizon_steps(config))
    earlier, seam = None, 0
    for extension in extensions:
        before = replace(config, budget=extension["budget"], horizon=extension["horizon"])
        earlier = replace(schedule_spec(before, horizon_steps(before)), earlier=earlier, seam=seam)
        seam = extension["after"]
    spec = replace(spec, earlier=earlier, seam=seam)
    milestones = (parse_tokens("checkpoint.milestones", tokens) for tokens in config.checkpoint.milestones)
    return Plan(
        tokens_per_step=tokens_per_step,
        steps=steps("budget", config.budget),
        schedule=spec,
        log_every=config.train.log_every,
        evaluate_every=config.evaluation.every,
        evaluate_dense_every=config.evaluation.dense_every,
        dense_steps=max(spec.warmup_steps, round(config.evaluation.dense_until * spec.total_steps)),
        save_every=config.checkpoint.every,
        milestones=tuple(round(tokens / tokens_per_step) for tokens in milestones),
    )
