"""Trainings that nobody has run: from asked-for settings to the trajectories that they would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np

from rewarm.checks import check
from rewarm.config import Config
from rewarm.errors import UserError
from rewarm.forecast.coverage import Seen
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.options import Options
from rewarm.plan import schedule_spec
from rewarm.schedules import SHAPE_PARAMETERS, lr_curve

USUAL = ("constant", "cosine", "wsd", "infinite_cosine")
"""Schedules that a recommendation looks at where none is named."""
USUAL_LRS = 9
"""Max LRs, evenly spaced in their logs over those measured, that it looks at where none is named."""
USUAL_BUDGETS = (0.25, 0.5, 0.75, 1.0)
"""Budgets, as shares of the longest measured, that it looks at where none is named."""


@dataclass(frozen=True)
class Settings:
    """What makes one candidate: the top-level keys of a run's config that a law can tell apart."""

    schedule: str
    max_lr: float
    min_lr_ratio: float
    warmup: float
    budget: int
    """Tokens."""
    horizon: int
    """Tokens."""
    replay: float


@dataclass(frozen=True)
class Candidate:
    """A training to predict."""

    label: str
    settings: Settings
    trajectory: Trajectory
    beyond: tuple[str, ...]
    """In what it lies outside what the fitted runs have seen, one phrase each."""

    @property
    def steps(self) -> int:
        """Return how many updates it has."""
        return len(self.trajectory.lr)


def _base(schedule: str, options: Options, start_lr: float, seen: Seen) -> Config:
    """Return the config that training would have with this schedule, read as training reads it."""
    from rewarm.compose import compose_config

    readable = SHAPE_PARAMETERS.get(schedule, ())
    return compose_config(
        f"schedule={schedule}",
        f"model.peak_lr={seen.usual_lr!r}",
        f"model.final_lr={start_lr or seen.max_lr[0]!r}",
        *(f"schedule.{name}={value}" for name, value in options.shape.items() if name in readable),
    )


def _check_shape(options: Options, schedules: Sequence[str]) -> None:
    for name, value in options.shape.items():
        if not any(name in SHAPE_PARAMETERS.get(schedule, ()) for schedule in schedules):
            raise UserError(
                f"schedule.{name}={value}: has no effect with schedule={','.join(schedules)}; leave it out"
            )


def candidates(options: Options, curves: Sequence[Curve], *, search: bool) -> list[Candidate]:
    """Return the trainings that the options ask for; with `search`, what is left open is spread over a grid."""
    seen = Seen.of(curves)
    like = curves[0].trajectory
    schedules = options.schedule or (USUAL if search else ("cosine",))
    _check_shape(options, schedules)
    lrs = options.max_lr or (np.geomspace(*seen.max_lr, USUAL_LRS).tolist() if search else (seen.usual_lr,))
    budgets = options.budget or tuple(round(b * seen.tokens) for b in (USUAL_BUDGETS if search else (1.0,)))
    found: dict[Settings, Candidate] = {}
    for schedule in schedules:
        base = _base(schedule, options, like.start_lr, seen)
        for max_lr, ratio, warmup, budget, horizon, replay in product(
            [base.max_lr] if schedule == "no_rewarm" else lrs,
            options.min_lr_ratio or (base.min_lr_ratio,),
            [0.0] if schedule == "no_rewarm" else options.warmup or (seen.warmup,),
            budgets,
            options.horizon or (None,),
            options.replay or (seen.usual_replay,),
        ):
            settings = Settings(schedule, max_lr, ratio, warmup, budget, horizon or budget, replay)
            if settings not in found:
                found[settings] = _candidate(base, settings, like, seen)
    return _labelled(list(found.values()))


def _candidate(base: Config, settings: Settings, like: Trajectory, seen: Seen) -> Candidate:
    config = check(
        replace(
            base,
            max_lr=settings.max_lr,
            min_lr_ratio=settings.min_lr_ratio,
            warmup=settings.warmup,
            replay=settings.replay,
        )
    )
    horizon, steps = (max(2, round(n / like.tokens_per_step)) for n in (settings.horizon, settings.budget))
    spec = schedule_spec(config, horizon)
    trajectory = replace(
        like,
        lr=lr_curve(spec, np.arange(1, steps + 1)),
        warmup_steps=min(spec.warmup_steps, steps),
        replay=settings.replay,
        shifted=True,
    )
    return Candidate("", settings, trajectory, seen.beyond(settings.max_lr, settings.budget, settings.replay))


def tokens_text(tokens: float) -> str:
    """Return a number of tokens as people write it: 2.05M, 297B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= scale:
            return f"{tokens / scale:.3g}{letter}"
    return f"{tokens:.3g}"


def describe(settings: Settings, names: Sequence[str]) -> str:
    """Return a label that gives the named settings."""
    texts = {"budget": tokens_text(settings.budget), "horizon": tokens_text(settings.horizon)}
    values = asdict(settings)
    parts = [values["schedule"] if "schedule" in names else ""]
    parts += [f"{n}={texts.get(n) or format(values[n], '.4g')}" for n in names if n != "schedule"]
    return " ".join(part for part in parts if part)


def _labelled(found: list[Candidate]) -> list[Candidate]:
    """Return the candidates, each labelled by its schedule, its max LR and whatever else tells them apart."""
    values = [asdict(candidate.settings) for candidate in found]
    names = [name for name in values[0] if name in ("schedule", "max_lr") or len({v[name] for v in values}) > 1]
    if "budget" in names and all(v["budget"] == v["horizon"] for v in values):
        names.remove("horizon")
    return [replace(candidate, label=describe(candidate.settings, names)) for candidate in found]
