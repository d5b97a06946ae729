"""The arguments of `rewarm forecast`: paths, and overrides that are checked as those of the other verbs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rewarm.config.schema import ScheduleConfig
from rewarm.config.values import parse_tokens
from rewarm.errors import UserError, choice, nearest
from rewarm.forecast.laws import LAWS, REPLAY_TERMS
from rewarm.schedules import SCHEDULES

ALIASES = {"infinite": "infinite_cosine"}


@dataclass(frozen=True)
class Logged:
    """What is said about CSV files that their columns do not hold, on the command line or above the columns."""

    tokens_per_step: float | None = None
    """Tokens of an update."""
    start_lr: float | None = None
    """LR at which pre-training ended."""
    warmup_steps: int | None = None
    """Updates over which the LR rose from 0 in a straight line."""
    total_steps: int | None = None
    """Updates over which the schedule was laid out."""
    lr_curve: Path | None = None
    """CSV file with columns `step` and `lr` that tells the LR of all updates, such as `rewarm schedule` writes."""
    parameters: float | None = None
    """Parameters of the model without its embeddings; above the columns, or behind a file's name."""
    schedule: tuple[str, ...] = ()
    """The schedule as overrides of training, above the columns alone: `schedule=cosine`, `max_lr=3e-4`."""


@dataclass(frozen=True)
class Options:
    """What was asked for. A tuple holds what a comma-separated list gave; empty means the runs decide."""

    paths: tuple[Path, ...]
    """Run folders, folders of runs, CSV files."""
    law: str = "cpt"
    """cpt, single, multipower, cpt_multipower, or auto: the one with the least hold-out error."""
    replay_term: str = "auto"
    """power, hyperbolic, or auto: the one with the least hold-out error."""
    holdout: tuple[str, ...] = ()
    """Names of runs that are predicted and never fitted; without it each arm is held out in turn."""
    memory: float | None = None
    """Memory of LR changes in steps, `1 / (1 - lambda)`; fitted where not given."""
    schedule: tuple[str, ...] = ()
    """Schedules to predict; `infinite` stands for infinite_cosine."""
    max_lr: tuple[float, ...] = ()
    """Maximum LRs to predict."""
    min_lr_ratio: tuple[float, ...] = ()
    """Minimum LRs to predict, as shares of the maximum."""
    warmup: tuple[float, ...] = ()
    """Warm-ups to predict, as shares of the horizon."""
    budget: tuple[int, ...] = ()
    """Tokens over which schedules are laid out."""
    stop: tuple[int, ...] = ()
    """Tokens after which a training ends on the same curve; at the end of the budget where not given."""
    replay: tuple[float, ...] = ()
    """Shares of replay to predict."""
    shape: dict[str, str] = field(default_factory=dict)
    """`schedule.NAME=…` of the schedules that read them."""
    max_forgetting: float | None = None
    """Most that the upstream loss may rise, in nats, or where `forgetting_is_share` as a share of it."""
    forgetting_is_share: bool = False
    weights: tuple[float, float] | None = None
    """Weights of upstream and downstream loss in what a recommendation minimises."""
    logged: Logged = field(default_factory=Logged)
    """What CSV files do not tell."""
    parameters: dict[Path, float] = field(default_factory=dict)
    """Parameters of the models behind some of the paths, without embeddings."""
    target: str = ""
    """The model that is asked about, larger than those of the runs: one of `conf/model`, or parameters (6.9B)."""
    start_loss: tuple[float, ...] = ()
    """The target's losses before any update, upstream's and downstream's, in nats a token."""
    seed: int = 0
    """Seed of the fits' starts."""
    verbose: bool = False
    """Whether the fitted parameters are shown too."""
    output: Path | None = None
    """Folder for tables and figures; the runs' own `report` folder where not given."""

    @property
    def recommends(self) -> bool:
        """Return whether a recommendation is asked for."""
        return self.max_forgetting is not None or self.weights is not None

    @property
    def predicts(self) -> bool:
        """Return whether curves of given schedules are asked for."""
        lists = (self.schedule, self.max_lr, self.min_lr_ratio, self.warmup, self.budget, self.stop, self.replay)
        return any(lists)


def _number(key: str, text: str, *, low: float, high: float = math.inf, above: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: is not a number") from None
    if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
        least = f"above {low:g}" if above else f"at least {low:g}"
        raise UserError(f"{key}={text}: must be {least}" + (f" and at most {high:g}" if high < math.inf else ""))
    return value


def _whole(key: str, text: str, low: int) -> int:
    value = _number(key, text, low=low)
    if value != int(value):
        raise UserError(f"{key}={text}: must be a whole number")
    return int(value)


def _one_of(key: str, text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise choice(key, text, known)
    return text


def _schedule(key: str, text: str) -> str:
    return ALIASES.get(text) or _one_of(key, text, [*SCHEDULES, *ALIASES])


def _weights(key: str, text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise UserError(f"{key}={text}: takes two numbers, upstream's and downstream's; for example {key}=1,1")
    up, down = (_number(key, part, low=0) for part in parts)
    if up + down == 0:
        raise UserError(f"{key}={text}: one of the two must be above 0")
    return up, down


def _forgetting(key: str, text: str) -> float:
    return _number(key, text.removesuffix("%"), low=0) / (100 if text.endswith("%") else 1)


def _lr(key: str, text: str) -> float:
    return _number(key, text, low=0, high=1, above=True)


def _share(key: str, text: str) -> float:
    return _number(key, text, low=0, high=1)


def parse_size(key: str, text: str) -> float:
    """Return a number of parameters: 6.9B, 25e6. Raises `UserError` for what is none."""
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    number = text[:-1] if text[-1:] in units else text
    return _number(key, number, low=0, above=True) * units.get(text[-1:], 1.0)


def _list(parse: Callable[[str, str], object]) -> Callable[[str, str], object]:
    return lambda key, text: tuple(parse(key, part.strip()) for part in text.strip("[]").split(","))


PARSERS: dict[str, Callable[[str, str], object]] = {
    "law": lambda k, t: _one_of(k, t, [*LAWS, "auto"]),
    "replay_term": lambda k, t: _one_of(k, t, [*REPLAY_TERMS, "auto"]),
    "holdout": lambda _, t: tuple(part.strip() for part in t.strip("[]").split(",") if part.strip()),
    "memory": lambda k, t: _number(k, t, low=1, above=True),
    "schedule": _list(_schedule),
    "max_lr": _list(_lr),
    "min_lr_ratio": _list(_share),
    "warmup": _list(_share),
    "budget": _list(parse_tokens),
    "stop": _list(parse_tokens),
    "replay": _list(lambda k, t: _number(k, t, low=0, high=0.999)),
    "max_forgetting": _forgetting,
    "weights": _weights,
    "target": lambda _, t: t,
    "start_loss": _list(lambda k, t: _number(k, t, low=0, above=True)),
    "seed": lambda k, t: _whole(k, t, 0),
    "verbose": lambda k, t: _one_of(k, t, ("true", "false")) == "true",
    "output": lambda _, t: Path(t).expanduser(),
}
LOGGED: dict[str, Callable[[str, str], object]] = {
    "tokens_per_step": lambda k, t: float(parse_tokens(k, t)),
    "start_lr": lambda k, t: _number(k, t, low=0, high=1),
    "warmup_steps": lambda k, t: _whole(k, t, 0),
    "total_steps": lambda k, t: _whole(k, t, 1),
    "lr_curve": lambda _, t: Path(t).expanduser(),
    "parameters": parse_size,
}
PER_FILE = ":parameters"
SHAPE_KEYS = {f"schedule.{f.name}" for f in fields(ScheduleConfig) if f.name != "name"}


def logged_above(path: Path, lines: Sequence[str], common: Logged) -> Logged:
    """Return what the lines above a file's columns, `# key=value key=value`, say over what is said of all files.

    Lines with any other word are remarks. Raises `UserError` for a value that cannot be.
    """
    words = [line.lstrip("# ").split() for line in lines]
    said = dict(word.split("=", 1) for line in words if all("=" in word for word in line) for word in line)
    try:
        known = {key: LOGGED[key](key, text) for key, text in said.items() if key in LOGGED}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "lr_curve" in known:
        known["lr_curve"] = path.parent / said["lr_curve"]
    schedule = tuple(f"{key}={text}" for key, text in said.items() if key not in LOGGED)
    return replace(common, **known, schedule=schedule)  # type: ignore[arg-type]


def parse(arguments: Sequence[str]) -> Options:
    """Return the options of a command line. Raises `UserError` for the first mistake in it."""
    paths, given = [], {}
    logged: dict[str, object] = {}
    shape: dict[str, str] = {}
    parameters: dict[Path, float] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        path = Path(argument).expanduser()
        if key.endswith(PER_FILE) and not path.exists():
            path, equals = Path(key.removesuffix(PER_FILE)).expanduser(), ""
            parameters[path] = parse_size("parameters", text)
        if path.exists() or not equals:
            if argument.startswith("-"):
                raise UserError(f"{argument}: unknown option (overrides are key=value)")
            if not path.exists():
                raise UserError(f"{path}: no such run, folder or CSV file")
            paths.append(path)
        elif key in SHAPE_KEYS:
            shape[key.removeprefix("schedule.")] = text
        elif key not in PARSERS | LOGGED:
            raise UserError(f"{key}: unknown key{nearest(key, [*PARSERS, *LOGGED, *SHAPE_KEYS])}")
        elif not text:
            raise UserError(f"{argument}: needs a value")
        elif key == "parameters":
            raise UserError(f"{argument}: of which model? Give FILE:parameters={text}")
        elif key in LOGGED:
            logged[key] = LOGGED[key](key, text)
        else:
            given[key] = PARSERS[key](key, text)
    if not paths:
        raise UserError("forecast: give the runs to fit: run folders, a folder of runs, or CSV files")
    share = any(a.startswith("max_forgetting=") and a.endswith("%") for a in arguments)
    return Options(
        paths=tuple(paths),
        parameters=parameters,
        shape=shape,
        forgetting_is_share=share,
        logged=Logged(**logged),  # type: ignore[arg-type]
        **given,  # type: ignore[arg-type]
    )
