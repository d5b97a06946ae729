"""Arms: runs that are seeds of one recipe, and what can be compared with what."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewarm.config.schema import SIDES, Config, ModelConfig, OptimizerConfig, ScheduleConfig, SourceConfig
from rewarm.points import spread_out
from rewarm.runs.metrics import Values
from rewarm.runs.run import Run, find_runs, open_run

log = logging.getLogger(__name__)

CURVE_POINTS = 400
"""A drawn curve has about this many points at most; its first, last, highest and lowest are always among them."""
DENSE = 64
"""Points at the start of a curve that are never thinned: there the loss moves fastest."""


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a run's numbers but its seed and its budget."""

    max_lr: float
    min_lr_ratio: float
    warmup: float
    horizon: int
    replay: float
    init: str
    """The checkpoint that was found when the run was begun: `runs/mine` is another one after it has grown."""
    schedule: ScheduleConfig
    train: str
    data: tuple[SourceConfig, SourceConfig, str]
    model: ModelConfig
    optimizer: OptimizerConfig
    batch: tuple[int, int]

    def key(self, *without: str) -> str:
        """Return what identifies the recipe when `without` are left out of sight."""
        return repr([getattr(self, f.name) for f in fields(self) if f.name not in without])


def recipe_of(run: Run) -> Recipe:
    """Return the recipe of a run."""
    c, begun = run.config, run.manifest.init
    return Recipe(
        max_lr=c.max_lr,
        min_lr_ratio=c.min_lr_ratio,
        warmup=c.warmup,
        horizon=run.horizon,
        replay=c.replay,
        init=f"{c.init.partition('@')[0]}@{Path(begun.folder).name}" if begun and begun.folder else c.init,
        schedule=c.schedule,
        train=c.data.train,
        data=(c.data.upstream, c.data.downstream, c.data.tokenizer),
        model=replace(c.model, init="", earlier=[]),
        optimizer=c.optimizer,
        batch=(c.train.batch_size, c.train.context),
    )


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, in order of it."""

    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """Return the first run; what all have in common can be read from it."""
        return self.runs[0]

    @property
    def config(self) -> Config:
        """Return the config of all its runs, but for the seed and the budget."""
        return self.one.config

    @property
    def name(self) -> str:
        """Return the arm's name: as configured, or the run's folder without the seed."""
        return self.config.arm.name or self.one.name.split(",seed=")[0]

    @cached_property
    def recipe(self) -> Recipe:
        """Return what its runs share."""
        return recipe_of(self.one)

    @cached_property
    def setting(self) -> str:
        """Return what runs must share to be compared at all: model, data pair, horizon and batch."""
        return self.recipe.key("max_lr", "min_lr_ratio", "warmup", "replay", "init", "schedule", "train")

    @property
    def rewarmed(self) -> bool:
        """Return whether the LR rises above that of the end of pre-training and then decays along a cosine."""
        c = self.config
        return c.schedule.name in ("cosine", "cosine_neox") and c.max_lr > 1.01 * c.model.final_lr

    @property
    def constant(self) -> bool:
        """Return whether it stays at the LR at which pre-training ended."""
        c = self.config
        return c.schedule.name == "constant" and math.isclose(c.max_lr, c.model.final_lr, rel_tol=0.01)

    def grid(self, side: str, domain: str | None = None) -> tuple[Values, NDArray[np.float64]]:
        """Return the tokens at which every seed was scored, and the losses there, of shape (seeds, points)."""
        curves = [run.loss(side, domain) for run in self.runs]
        tokens = curves[0][0]
        for other, _ in curves[1:]:
            tokens = np.intersect1d(tokens, other)
        losses = [values[np.isin(at, tokens)] for at, values in curves]
        return tokens, np.array(losses, dtype=np.float64).reshape(len(curves), len(tokens))

    def at(self, side: str, tokens: float) -> dict[int, float]:
        """Return the loss of one side after `tokens` by seed, on the straight line between two evaluations."""
        curves = {run.seed: run.loss(side) for run in self.runs}
        return {seed: float(np.interp(tokens, *curve)) for seed, curve in curves.items() if curve[0].size}

    @property
    def tokens(self) -> float:
        """Return the tokens that every seed has been trained on."""
        return min((run.loss("upstream")[0][-1] for run in self.runs if run.loss("upstream")[0].size), default=0.0)


def thin(tokens: Values, values: Values) -> tuple[Values, Values]:
    """Return about `CURVE_POINTS` points of a curve, its extremes and its dense beginning among them."""
    n = len(tokens)
    if n <= CURVE_POINTS:
        return tokens, values
    kept = np.unique(
        np.concatenate(
            [
                np.arange(min(DENSE, n)),
                spread_out(n, CURVE_POINTS - DENSE),
                [int(values.argmax()), int(values.argmin())],
            ]
        )
    )
    return tokens[kept], values[kept]


def load(paths: Sequence[Path]) -> list[Run]:
    """Return all runs at or under `paths` that have been scored at least once."""
    runs = [open_run(path) for path in find_runs(paths)]
    return [run for run in runs if all(run.loss(side)[0].size for side in SIDES)]


def arms_of(runs: Iterable[Run]) -> list[Arm]:
    """Return the arms of `runs`; of two runs of one arm with the same seed the longer one counts."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault(recipe_of(run).key(), {})
        if run.seed not in seeds or seeds[run.seed].trained < run.trained:
            seeds[run.seed] = run
    return [Arm(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in groups.values()]


def settings_of(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Return the arms in groups that can be compared, the largest first."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.setting, []).append(arm)
    return sorted(groups.values(), key=len, reverse=True)
