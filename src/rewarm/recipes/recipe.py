"""A recipe: what a run does, apart from who trains it, and what another trainer makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config, OptimizerConfig
from rewarm.schedules import SHAPE_PARAMETERS, ScheduleSpec, lr_curve

Array = NDArray[np.float64]

FAMILIES = {"no_rewarm": "cosine", "cosine_neox": "cosine", "infinite_cosine": "wsd", "infinite_inverse_sqrt": "wsd"}
"""For a schedule that is ours alone, the nearest one that others have; those not named stand for themselves."""


@dataclass(frozen=True)
class Recipe:
    """What a run does. Lengths are in updates, learning rates are per update."""

    spec: ScheduleSpec
    steps: int
    sequences: int
    """Sequences of one update, over all processes."""
    context: int
    optimizer: OptimizerConfig
    precision: str
    replay: float
    model: str
    """Where weights come from: a hub id, a folder, or another `init` of ours."""
    tokenizer: str
    trained: str
    """The data that is trained on, as the user named it."""
    replayed: str | None
    """The data of which `replay` comes, where any does."""
    seed: int

    @property
    def family(self) -> str:
        """Return the schedule, or the nearest that others have: constant, linear, cosine, wsd or inverse_sqrt."""
        return FAMILIES.get(self.spec.name, self.spec.name)

    @property
    def decay_steps(self) -> int:
        """Return the updates of the final decay: all after the warm-up but for `wsd` and the `infinite_*`."""
        whole = self.spec.total_steps - self.spec.warmup_steps
        if self.spec.name == "wsd":
            return min(whole, round(self.spec.decay_fraction * self.spec.total_steps))
        if self.spec.name.startswith("infinite"):
            return min(whole, self.spec.total_steps - round(self.spec.constant_end * self.spec.total_steps))
        return whole

    @property
    def min_ratio(self) -> float:
        """Return the minimum LR as a share of the maximum."""
        return self.spec.min_lr / self.spec.max_lr

    @property
    def min_lr(self) -> float:
        """Return the minimum LR without the last bits of a product, as one would write it by hand."""
        return float(f"{self.spec.min_lr:.12g}")

    @property
    def tokens(self) -> int:
        """Return the tokens of all updates."""
        return self.steps * self.sequences * self.context


def _name(config: Config, side: str) -> str:
    """Return the data of a side as a user would name it to another trainer."""
    given = config.source(side)
    return given.path or (f"{given.id}@{given.revision}" if given.id else f"{config.data.name}-{side}")


def recipe_of(config: Config) -> Recipe:
    """Return the recipe of a config."""
    plan = make_plan(config)
    side = config.data.train
    replayed = None if config.replay == 0 or side == "upstream" else _name(config, config.replayed)
    return Recipe(
        spec=plan.schedule,
        steps=plan.steps,
        sequences=config.train.batch_size,
        context=config.train.context,
        optimizer=config.optimizer,
        precision="fp16" if config.precision == "auto" else config.precision,
        replay=config.replay if replayed else 0.0,
        model=config.init,
        tokenizer=config.data.tokenizer,
        trained=_name(config, side),
        replayed=replayed,
        seed=config.seed,
    )


@dataclass(frozen=True)
class Export:
    """A trainer's settings for a recipe."""

    trainer: str
    """The trainer, with the version or commit whose formula `curve` is."""
    text: str
    """The settings, in the trainer's own form."""
    curve: Callable[[Array], Array] | None
    """The LR of updates 1, 2, … by the trainer's own formula; None where the trainer takes our numbers."""
    notes: tuple[str, ...] = ()
    """What the settings cannot say, and what to look after."""
    comment: str = "#"
    """What starts a comment in the settings; empty where there are none."""


def distance(recipe: Recipe, curve: Callable[[Array], Array], first: int = 1) -> tuple[float, int]:
    """Return the largest relative difference of a trainer's LR from ours, |theirs/ours - 1|, and the update it is at.

    Updates before `first` are left out. Where our LR is 0 the difference counts as a share of the maximum LR.
    """
    updates = np.arange(first, recipe.steps + 1, dtype=np.float64)
    ours, theirs = lr_curve(recipe.spec, updates), curve(updates)
    apart = np.abs(theirs - ours) / np.where(ours > 0, ours, recipe.spec.max_lr)
    worst = int(apart.argmax())
    return float(apart[worst]), first + worst


def render(recipe: Recipe, export: Export) -> str:
    """Return the settings under comments: what they are for, how far the LR lies from ours, and the notes."""
    if not export.comment:
        return export.text
    spec = recipe.spec
    size = f"{recipe.steps:,} updates of {recipe.sequences:,} x {recipe.context:,} tokens"
    lines = [f"{export.trainer}: {size}, schedule {spec.name}, LR up to {spec.max_lr:g}"]
    if export.curve is not None:
        apart, at = distance(recipe, export.curve)
        lines.append(f"LR: at most {apart:.2%} from rewarm's, at update {at:,}")
        if 0 < spec.warmup_steps < recipe.steps:
            apart, at = distance(recipe, export.curve, spec.warmup_steps + 1)
            lines.append(f"LR after the warm-up: at most {apart:.2%} from rewarm's, at update {at:,}")
    return "".join(f"{export.comment} {line}\n" for line in [*lines, *export.notes]) + export.text


def as_yaml(values: dict[str, Any]) -> str:
    """Return settings as YAML, in the order given."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, without the keys that its schedule does not read."""
    spec = asdict(recipe.spec)
    shape = {key: spec[key] for key in SHAPE_PARAMETERS.get(recipe.spec.name, ())}
    kept = {key: spec[key] for key in ("name", "max_lr", "min_lr", "warmup_steps", "total_steps")}
    values = {key: value for key, value in asdict(recipe).items() if key != "spec"}
    return {"schedule": kept | shape, **values, "tokens": recipe.tokens}
