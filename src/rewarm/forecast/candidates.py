"""Trainings that nobody has run: from asked-for settings to the trajectories that they would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np

from rewarm.config.checks import check
from rewarm.config.compose import compose_config
from rewarm.config.plan import end_of, horizon_of, schedule_spec
from rewarm.config.schema import Config, ScheduleConfig
from rewarm.errors import UserError
from rewarm.forecast.coverage import Seen, of_usual_start
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.options import Options
from rewarm.schedules import SHAPE_PARAMETERS, lr_curve
from rewarm.text import tokens_text

USUAL = ("constant", "cosine", "wsd", "infinite_cosine")
"""Schedules that a recommendation looks at where none is named and the runs do not tell theirs."""
SEARCHED_LRS = 9
"""Max LRs, evenly spaced in their logs over those measured, that it looks at beside the measured ones themselves."""
SEARCHED_BUDGETS = (0.5, 0.75, 1.0)
"""Budgets, as shares of the longest measured, that it looks at where none is named."""


@dataclass(frozen=True)
class Settings:
    """What makes one candidate: the top-level keys of a run's config that a law can tell apart."""

    schedule: str
    max_lr: float
    min_lr_ratio: float
    warmup: float
    budget: int
    """Tokens over which the schedule is laid out."""
    stop: int
    """Tokens after which the run ends; the budget where it is not cut short."""
    replay: float
    shape: tuple[tuple[str, float | str], ...] = ()
    """`schedule.NAME` and its value, where that is not the schedule's default."""


@dataclass(frozen=True)
class Candidate:
    """A training to predict."""

    label: str
    settings: Settings
    trajectory: Trajectory
    beyond: tuple[str, ...]
    """In what it lies outside what the fitted runs have seen, one phrase each."""
    withheld: str | None
    """Why no number is given for it; None where one is."""

    @property
    def steps(self) -> int:
        """Return how many updates it has."""
        return len(self.trajectory.lr)


def _base(schedule: str, options: Options, start_lr: float, seen: Seen) -> Config:
    """Return the config that training would have with this schedule, read as training reads it."""
    readable = SHAPE_PARAMETERS.get(schedule, ())
    return compose_config(
        f"schedule={schedule}",
        f"warmup={0.0 if schedule == 'no_rewarm' else seen.warmup!r}",
        f"model.peak_lr={seen.usual_lr!r}",
        f"model.final_lr={start_lr or seen.max_lr[0]!r}",
        *(f"schedule.{name}={value}" for name, value in options.shape.items() if name in readable),
    )


def _recipes(base: Config, options: Options, curves: Sequence[Curve]) -> list[tuple[Config, float]]:
    """Return the configs to vary: those of the runs that had the schedule of `base`, else that.

    With each comes after which share of the schedule its runs were stopped.
    """
    warmups: dict[tuple[ScheduleConfig, float, float], list[float]] = {}
    for config in (curve.config for curve in curves):
        if config is not None and config.schedule.name == base.schedule.name and not options.shape:
            share = end_of(config)[1] / horizon_of(config)[1]
            warmups.setdefault((config.schedule, config.min_lr_ratio, share), []).append(config.warmup)
    return [
        (replace(base, schedule=shape, min_lr_ratio=ratio, warmup=float(np.median(found))), share)
        for (shape, ratio, share), found in warmups.items()
    ] or [(base, 1.0)]


def _shape(recipe: Config, default: Config) -> tuple[tuple[str, float | str], ...]:
    """Return what a recipe's schedule has that the schedule's default has not."""
    names = SHAPE_PARAMETERS.get(recipe.schedule.name, ())
    values = ((name, getattr(recipe.schedule, name)) for name in names)
    return tuple((name, value) for name, value in values if value != getattr(default.schedule, name))


def _check_shape(options: Options, schedules: Sequence[str]) -> None:
    for name, value in options.shape.items():
        if not any(name in SHAPE_PARAMETERS.get(schedule, ()) for schedule in schedules):
            raise UserError(
                f"schedule.{name}={value}: has no effect with schedule={','.join(schedules)}; leave it out"
            )


def candidates(options: Options, curves: Sequence[Curve], *, search: bool) -> list[Candidate]:
    """Return the trainings that the options ask for; with `search`, what is left open is spread over a grid."""
    seen, like = Seen.of(curves), of_usual_start(curves)[0].trajectory
    ran = tuple(dict.fromkeys(curve.config.schedule.name for curve in curves if curve.config is not None))
    schedules = options.schedule or ((ran or USUAL) if search else ("cosine",))
    _check_shape(options, schedules)
    lrs = options.max_lr or (_searched_lrs(seen) if search else [seen.usual_lr])
    replays = options.replay or (seen.replays if search else [seen.usual_replay])
    found: dict[Settings, Candidate] = {}
    for schedule in schedules:
        default = _base(schedule, Options(paths=()), like.start_lr, seen)
        for recipe, share in _recipes(_base(schedule, options, like.start_lr, seen), options, curves):
            shape = _shape(recipe, default)
            for max_lr, ratio, warmup, (budget, stop), replay in product(
                [recipe.max_lr] if schedule == "no_rewarm" else lrs,
                options.min_lr_ratio or (recipe.min_lr_ratio,),
                options.warmup or (recipe.warmup,),
                _lengths(options, seen, share, search=search),
                replays,
            ):
                settings = Settings(schedule, max_lr, ratio, warmup, budget, stop, replay, shape)
                if settings not in found:
                    found[settings] = _candidate(recipe, settings, like, seen)
    return _labelled(list(found.values()))


def _lengths(options: Options, seen: Seen, share: float, *, search: bool) -> list[tuple[int, int]]:
    """Return budgets and stops; those that nobody asked for are as the runs had them, which end after `share`."""
    if options.budget:
        pairs = product(options.budget, options.stop or (max(options.budget),))
        return [(budget, min(budget, stop)) for budget, stop in pairs]
    ends = options.stop or tuple(round(b * seen.tokens) for b in (SEARCHED_BUDGETS if search else (1.0,)))
    return [(round(end / share) if search else max(end, round(seen.tokens)), end) for end in ends]


def _searched_lrs(seen: Seen) -> list[float]:
    return sorted({*np.geomspace(*seen.max_lr, SEARCHED_LRS).tolist(), *seen.max_lrs})


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
    whole, steps = (max(2, round(n / like.tokens_per_step)) for n in (settings.budget, settings.stop))
    spec = schedule_spec(config, whole)
    trajectory = replace(
        like,
        lr=lr_curve(spec, np.arange(1, steps + 1)),
        warmup_steps=min(spec.warmup_steps, steps),
        replay=settings.replay,
        shifted=True,
    )
    return Candidate("", settings, trajectory, seen.beyond(trajectory), seen.withheld(trajectory))


def settings_of(curve: Curve) -> Settings | None:
    """Return the settings that a run had; None for a CSV file, which does not tell."""
    if curve.config is None:
        return None
    config = curve.config
    default = compose_config(f"schedule={config.schedule.name}")
    return Settings(
        config.schedule.name,
        config.max_lr,
        config.min_lr_ratio,
        config.warmup,
        horizon_of(config)[1],
        end_of(config)[1],
        config.replay,
        _shape(config, default),
    )


def describe(settings: Settings, names: Sequence[str]) -> str:
    """Return a label that gives the named settings."""
    values = asdict(settings)
    texts = {name: f"{name}={value:.4g}" for name, value in values.items() if isinstance(value, float)}
    texts |= {name: f"{name}={tokens_text(values[name])}" for name in ("budget", "stop")}
    texts |= {"schedule": settings.schedule, "shape": " ".join(f"{name}={value}" for name, value in settings.shape)}
    return " ".join(texts[name] for name in names if texts[name])


def _labelled(found: list[Candidate]) -> list[Candidate]:
    """Return the candidates, each labelled by its schedule, its max LR and whatever else tells them apart."""
    values = [asdict(candidate.settings) for candidate in found]
    names = [name for name in values[0] if name in ("schedule", "max_lr") or len({v[name] for v in values}) > 1]
    if "budget" in names and all(v["budget"] == v["stop"] for v in values):
        names.remove("stop")
    return [replace(candidate, label=describe(candidate.settings, names)) for candidate in found]
