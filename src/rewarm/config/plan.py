"""What a config means in steps: the frozen numbers that the loop, the preview and the estimate share."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

from rewarm.config.schema import Config
from rewarm.config.values import Tokens, Within
from rewarm.errors import UserError
from rewarm.schedules import ScheduleSpec, lr

FEWEST_EVALUATIONS, USUAL_EVERY = 10, 50
"""Without `evaluation.every` a run is scored so many times or more, and every so many steps or more often."""
MOST_STEPS = 2**24
"""AdamW counts its updates in FP32, which counts no further."""


@dataclass(frozen=True)
class Plan:
    """A run in steps. Step 0 is the state before the first update."""

    tokens_per_step: int
    steps: int
    """Updates until the run ends."""
    schedule: ScheduleSpec
    log_every: int
    evaluate_every: int
    evaluate_dense_every: int
    dense_steps: int
    """Up to this step evaluation is dense."""
    save_every: int
    milestones: tuple[int, ...]
    """Steps whose checkpoint is saved and never removed."""
    forks: tuple[int, ...] = ()
    """Steps that are saved for runs that begin as this one."""

    def logs(self, step: int) -> bool:
        """Return whether training metrics are written at `step`."""
        return step % self.log_every == 0 or step == self.steps or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Return whether both validation sets are scored at `step`."""
        every = self.evaluate_dense_every if step <= self.dense_steps else self.evaluate_every
        return step % every == 0 or step in (self.steps, self.schedule.warmup_steps)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written at `step`."""
        return step in self.forks or self._saves_alone(step)

    @property
    def saved_for_others(self) -> tuple[int, ...]:
        """Return the steps that are saved for other runs alone."""
        return tuple(step for step in self.forks if not self._saves_alone(step))

    def _saves_alone(self, step: int) -> bool:
        return step > 0 and (step % self.save_every == 0 or step == self.steps or step in self.milestones)

    def early_stop(self) -> str | None:
        """Return one line that says where on its curve the run ends; None where it ends with the curve."""
        whole = self.schedule.total_steps
        if self.steps >= whole:
            return None
        here, end = (lr(self.schedule, step) for step in (self.steps, whole))
        return (
            f"stops after {self.steps * self.tokens_per_step:,} of the schedule's {whole * self.tokens_per_step:,} "
            f"tokens ({self.steps / whole:.0%}): the learning rate is {here:.3g} there, and would end at {end:.3g}"
        )


@dataclass(frozen=True)
class Extension:
    """What a run was laid out for before it was extended."""

    after: Annotated[int, Within(0)]
    """The last step before the extension."""
    budget: Tokens
    horizon: Tokens | None = None
    stop: Tokens | None = None

    def config_before(self, config: Config) -> Config:
        """Return what the config of the run was before, where `config` is what it is since."""
        return replace(config, budget=self.budget, horizon=self.horizon, stop=self.stop)


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


def end_of(config: Config) -> tuple[str, int]:
    """Return the key that says where the run ends, and its tokens."""
    return ("budget", config.budget) if config.stop is None else ("stop", config.stop)


def horizon_of(config: Config) -> tuple[str, int]:
    """Return the key that says over what the schedule is laid out, and its tokens."""
    return ("budget", config.budget) if config.horizon is None else ("horizon", config.horizon)


def make_plan(config: Config, extensions: Sequence[Extension] = ()) -> Plan:
    """Return the plan of a config. Raises `UserError` where it is under one step, or more than can be counted.

    `extensions`, from the first to the last, are those of an extended run: up to there the learning rates are those
    that were run.
    """
    tokens_per_step = config.train.batch_size * config.train.context

    def steps(name: str, tokens: int) -> int:
        if tokens < tokens_per_step:
            raise UserError(f"{name}={tokens}: is less than one step of {tokens_per_step:,} tokens")
        # To the nearest step, so that 296.86B tokens are the paper's 131,296 steps.
        return round(tokens / tokens_per_step)

    key, tokens = end_of(config)
    last = steps(key, tokens)
    if last > MOST_STEPS:
        raise UserError(
            f"{key}={tokens}: is {last:,} steps of {tokens_per_step:,} tokens, more than {MOST_STEPS:,}; "
            f"give larger steps (train.batch_size, train.context)"
        )
    spec = schedule_spec(config, steps(*horizon_of(config)))
    earlier, seam = None, 0
    for extension in extensions:
        before = extension.config_before(config)
        earlier = replace(schedule_spec(before, steps(*horizon_of(before))), earlier=earlier, seam=seam)
        seam = extension.after
    spec = replace(spec, earlier=earlier, seam=seam)
    every = config.evaluation.every or max(1, min(USUAL_EVERY, last // FEWEST_EVALUATIONS))
    return Plan(
        tokens_per_step=tokens_per_step,
        steps=last,
        schedule=spec,
        log_every=config.train.log_every,
        evaluate_every=every,
        evaluate_dense_every=min(every, config.evaluation.dense_every),
        dense_steps=max(spec.warmup_steps, round(config.evaluation.dense_until * spec.total_steps)),
        save_every=config.checkpoint.every,
        milestones=tuple(round(tokens / tokens_per_step) for tokens in config.checkpoint.milestones),
        forks=tuple(step for step in config.fork.steps if step <= last),
    )


def logged(config: Config, extensions: Sequence[Extension], steps: Iterable[int]) -> dict[int, bool]:
    """Return those of `steps` that an extended run must have logged, and whether both losses were scored there.

    A part of a run may have been done again under a later plan, after a checkpoint was lost: a step counts where all
    plans that it can have been done under log it.
    """
    ends = [extension.after for extension in extensions]
    plans = [make_plan(e.config_before(config), extensions[:i]) for i, e in enumerate(extensions)]
    plans.append(make_plan(config, extensions))
    found = {}
    for step in steps:
        under = plans[bisect_left(ends, step) :]
        if step == 0 or all(plan.logs(step) for plan in under):
            found[step] = step == 0 or all(plan.evaluates(step) for plan in under)
    return found
