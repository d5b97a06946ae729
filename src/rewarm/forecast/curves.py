"""What the laws are fitted on: the losses that a run measured, and the LR of every one of its updates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rewarm.config.plan import Plan
from rewarm.config.schema import SIDES, Config, ModelConfig
from rewarm.forecast.history import Array, Pretraining, Steps, pretraining_of
from rewarm.model.shape import config_of, shape_from
from rewarm.runs.run import Run
from rewarm.schedules import lr_curve

log = logging.getLogger(__name__)

FEWEST_POINTS = 4


@dataclass(frozen=True)
class Trajectory:
    """One training as the laws see it, measured or only planned. Update `t` (from 1) used `lr[t - 1]`."""

    lr: Array
    """Learning rate of each update."""
    tokens_per_step: float
    start_lr: float
    """LR just before the first update, from which that one's change counts: where pre-training ended."""
    warmup_steps: int = 0
    replay: float = 0.0
    """Share of every batch that comes from upstream."""
    shifted: bool = True
    """Whether it trains on other data than the model was pretrained on."""
    pretraining: Pretraining | None = None
    """What came before the first update; None where it is not known."""
    parameters: float | None = None
    """Parameters of the model without its embeddings; None where they are not known."""

    @property
    def tokens(self) -> float:
        """Return the tokens of all its updates."""
        return len(self.lr) * self.tokens_per_step


@dataclass(frozen=True)
class Curve:
    """A trajectory with the validation losses measured along it."""

    name: str
    arm: str
    """Equal for runs that differ only by seed."""
    trajectory: Trajectory
    losses: dict[str, tuple[Steps, Array]]
    """For each validation set the steps, rising, and the losses there in nats a token."""
    planned_steps: int
    """Steps that the run is to have in the end; more than measured where it is unfinished."""
    config: Config | None = None
    """What the run was asked to be; None for a CSV file."""
    path: Path | None = None
    """The run's folder."""

    @property
    def last_step(self) -> int:
        """Return the last step at which any loss was measured."""
        return max(int(steps[-1]) for steps, _ in self.losses.values())

    @property
    def finished(self) -> bool:
        """Return whether the run came to the end of its plan."""
        return self.last_step >= self.planned_steps


def planned(config: Config, plan: Plan) -> Trajectory:
    """Return the training that a config asks for. What was before it is not in it, beyond what the model says."""
    return Trajectory(
        lr=lr_curve(plan.schedule, np.arange(1, plan.steps + 1)),
        tokens_per_step=plan.tokens_per_step,
        start_lr=config.model.final_lr or 0.0,
        warmup_steps=min(plan.schedule.warmup_steps, plan.steps),
        replay=config.replay,
        shifted=config.data.train != "upstream" and config.init != "scratch",
        parameters=parameters_of(config.model),
    )


def parameters_of(model: ModelConfig) -> float | None:
    """Return the parameters of a model without its embeddings; None where its config does not tell."""
    described = config_of(model)
    shape = shape_from(described) if described else None
    return float(shape.blocks) if shape else None


def curve_of(run: Run, *, says: bool = True) -> Curve | None:
    """Return the curve of a run, or None, with a line in the log unless `says` is false, where it has none to fit."""
    losses: dict[str, tuple[Steps, Array]] = {}
    for side in SIDES:
        steps, values = run.loss(side, against="step")
        if len(steps) >= FEWEST_POINTS:
            losses[side] = (steps.astype(np.int64), values)
    fault = run.other_lr and f"{run.other_lr}; left out"
    if not losses:
        fault = f"{run.path}: left out, it has fewer than {FEWEST_POINTS} evaluations so far"
    if fault:
        if says:
            log.warning("%s", fault)
        return None
    config, plan = run.config, run.plan
    pretraining = pretraining_of(run)
    start_lr = pretraining.final_lr if pretraining is not None else config.model.final_lr
    return Curve(
        name=run.name,
        arm=_arm(config),
        trajectory=replace(planned(config, plan), start_lr=start_lr or 0.0, pretraining=pretraining),
        losses=losses,
        planned_steps=plan.steps,
        config=config,
        path=run.path,
    )


def _arm(config: Config) -> str:
    """Return what makes a run's numbers, the seed left out: equal for the seeds of one arm."""
    blank = {name: type(getattr(config, name))() for name in ("arm", "tracker", "sweep", "fork")}
    return repr(replace(config, seed=0, run_dir="", **blank))


def distinct_names(curves: Sequence[Curve], paths: Iterable[Path]) -> list[Curve]:
    """Return the curves with names of their own: those that share one are told apart by more of their path."""
    parts = [path.parts for path in paths]
    named = list(curves)
    for depth in range(2, 5):
        names = [curve.name for curve in named]
        if len(set(names)) == len(names):
            break
        named = [
            replace(curve, name="/".join(part[-depth:])) if names.count(curve.name) > 1 else curve
            for curve, part in zip(named, parts, strict=True)
        ]
    return named
