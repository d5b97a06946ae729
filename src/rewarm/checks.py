"""From what Hydra composed to a checked `Config`: every impossible value is refused in one line, at the door.

Like `rewarm.config`, this imports neither torch nor transformers, so that a mistake is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from rewarm.config import SIDES, Config, DataConfig, SourceConfig, schema
from rewarm.errors import UserError, choice, first_line, nearest
from rewarm.schedules import DECAY_SHAPES, SCHEDULES, SHAPE_PARAMETERS

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda", "mps")
PARALLEL = ("ddp", "fsdp")
TRACKERS = ("wandb", "tensorboard")
SOURCES = ("builtin", "files", "hub")


def parse_tokens(name: str, value: object) -> int:
    """Return a positive number of tokens out of `50M`, `1.5B`, `2e9` or a number; `name` is for the error."""
    advice = f"{name}={value}: not a number of tokens; write for example 50M, 1.5B or 2e9"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(advice)
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", str(value).strip().lower())
    if match is None:
        raise UserError(advice)
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]]
    tokens = float(match[1].replace("_", "")) * scale
    if not math.isfinite(tokens) or round(tokens) < 1:
        raise UserError(f"{name}={value}: must be at least one token")
    return round(tokens)


def source(data: DataConfig, side: str) -> SourceConfig:
    """Return the source of `side` (upstream or downstream): a path stands for local files."""
    value = getattr(data, side)
    given = {"path": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise UserError(f"data.{side}={value}: must be a path or a source; see conf/data/ for examples")
    known = {f.name for f in fields(SourceConfig)}
    for key in given:
        if key not in known:
            raise UserError(f"data.{side}.{key}: unknown key{nearest(str(key), known)}")
    merged = OmegaConf.merge(
        OmegaConf.structured(SourceConfig(text_field=data.text_field, domain_field=data.domain_field)), {}
    )
    OmegaConf.set_readonly(merged, None)
    for key, item in given.items():
        try:
            OmegaConf.update(merged, str(key), item, merge=False)
        except Exception as error:
            raise UserError(f"data.{side}.{key}={item}: {first_line(error)}") from error
    result = OmegaConf.to_object(merged)
    assert isinstance(result, SourceConfig)
    _check_source(side, result)
    return result


def _check_source(side: str, src: SourceConfig) -> None:
    if src.kind not in SOURCES:
        raise choice(f"data.{side}.kind", src.kind, SOURCES)
    needed = {"files": "path", "hub": "id", "builtin": "weights"}[src.kind]
    if not getattr(src, needed):
        raise UserError(f"data.{side}.{needed}: a source of kind {src.kind} needs it")
    if not 0 < src.validation_share < 1:
        raise UserError(f"data.{side}.validation_share={src.validation_share}: is a share and must lie within 0..1")


def _require(ok: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not ok:
        raise UserError(message)


def check(config: Config) -> Config:
    """Raise a `UserError` for the first impossible value, and return the config."""
    c = config
    _require(c.tracker.patience > 0, f"tracker.patience={c.tracker.patience}: must be above 0 seconds")
    hours = c.max_hours
    _require(hours is None or 0 < hours < math.inf, f"max_hours={hours}: must be a number of hours above 0")
    _require(
        not (c.init_optimizer and c.init == "scratch"),
        "init_optimizer=true: init=scratch has no optimizer state; name a checkpoint, or leave it out",
    )
    for tokens in c.checkpoint.milestones:
        parse_tokens("checkpoint.milestones", tokens)
    for name in ("max_lr", "min_lr_ratio", "warmup", "replay"):
        _require(math.isfinite(getattr(c, name)), f"{name}={getattr(c, name)}: must be a finite number")
    _require(c.max_lr > 0, f"max_lr={c.max_lr}: must be above 0, for example 6e-4")
    _require(
        0 <= c.min_lr_ratio <= 1,
        f"min_lr_ratio={c.min_lr_ratio}: the minimum LR must lie between 0 and max_lr; give a share in 0..1",
    )
    _require(0 <= c.warmup <= 1, f"warmup={c.warmup}: is a share of the horizon and must lie in 0..1")
    _require(0 <= c.replay < 1, f"replay={c.replay}: is a share of every batch and must lie in 0..1, below 1")
    for name, known in (("precision", PRECISIONS), ("device", DEVICES)):
        if getattr(c, name) not in known:
            raise choice(name, getattr(c, name), known)
    if c.train.parallel not in PARALLEL:
        raise choice("train.parallel", c.train.parallel, PARALLEL)
    _require(
        not (c.train.parallel == "fsdp" and c.train.compile),
        "train.compile=true: does not go with train.parallel=fsdp; leave one of them out",
    )
    parse_tokens("budget", c.budget)
    if c.horizon is not None:
        parse_tokens("horizon", c.horizon)
    _check_schedule(c)
    _check_numbers(c)
    for side in SIDES:
        source(c.data, side)
    if c.data.train not in SIDES:
        raise choice("data.train", c.data.train, SIDES)
    _require(
        c.replay == 0 or c.data.train == "downstream",
        f"replay={c.replay}: has no meaning with data.train=upstream; leave it out",
    )
    for tracker in c.tracker.names:
        if tracker not in TRACKERS:
            raise choice("tracker.names", tracker, TRACKERS)
    if c.tracker.mode not in ("auto", "online", "offline"):
        raise choice("tracker.mode", c.tracker.mode, ("auto", "online", "offline"))
    return config


def _check_schedule(c: Config) -> None:
    s = c.schedule
    if s.name not in SCHEDULES:
        raise choice("schedule", s.name, SCHEDULES)
    readable = SHAPE_PARAMETERS.get(s.name, ())
    for f in fields(s):
        value = getattr(s, f.name)
        if f.name == "name" or value is None:
            continue
        _require(
            f.name in readable,
            f"schedule.{f.name}={value}: has no effect with schedule={s.name}; leave it out",
        )
        if f.name == "decay_shape":
            if value not in DECAY_SHAPES:
                raise choice("schedule.decay_shape", value, DECAY_SHAPES)
        elif f.name == "alpha":
            _require(math.isfinite(value) and value > 0, f"schedule.alpha={value}: must be above 0")
        else:
            _require(0 < value <= 1, f"schedule.{f.name}={value}: is a share and must lie in 0..1, above 0")
    if s.cooldown_end is not None and s.constant_end is not None:
        _require(
            s.cooldown_end <= s.constant_end,
            f"schedule.cooldown_end={s.cooldown_end}: must not lie after constant_end={s.constant_end}",
        )
    _require(
        s.name != "no_rewarm" or c.warmup == 0,
        f"warmup={c.warmup}: schedule=no_rewarm has no warm-up; use schedule=cosine for one",
    )


def _check_numbers(c: Config) -> None:
    positive = {
        "train.batch_size": c.train.batch_size,
        "train.micro_batch_size": c.train.micro_batch_size,
        "train.context": c.train.context,
        "train.log_every": c.train.log_every,
        "train.max_bad_steps": c.train.max_bad_steps,
        "train.threads": c.train.threads,
        "evaluation.every": c.evaluation.every,
        "evaluation.dense_every": c.evaluation.dense_every,
        "evaluation.batch_size": c.evaluation.batch_size,
        "checkpoint.every": c.checkpoint.every,
        "checkpoint.keep_every": c.checkpoint.keep_every,
        "data.shuffle_window": c.data.shuffle_window,
        "scaler.growth_interval": c.scaler.growth_interval,
        "scaler.hysteresis": c.scaler.hysteresis,
    }
    for name, value in positive.items():
        _require(value is None or value >= 1, f"{name}={value}: must be at least 1")
    _require(c.data.workers >= 0, f"data.workers={c.data.workers}: must not be negative")
    bad, patience = c.data.max_bad_share, c.data.patience
    _require(0 <= bad < 1, f"data.max_bad_share={bad}: is a share and must lie in 0..1, below 1")
    peak = c.train.peak_tflops
    _require(peak is None or peak > 0, f"train.peak_tflops={peak}: must be above 0")
    speed = c.train.tokens_per_second
    _require(speed is None or speed > 0, f"train.tokens_per_second={speed}: must be above 0")
    _require(patience >= 0, f"data.patience={patience}: must not be negative")
    _require(c.seed >= 0, f"seed={c.seed}: must not be negative")
    _require(c.checkpoint.keep >= 0, f"checkpoint.keep={c.checkpoint.keep}: must not be negative")
    micro, batch = c.train.micro_batch_size, c.train.batch_size
    _require(
        micro is None or batch % micro == 0,
        f"train.micro_batch_size={micro}: must divide train.batch_size={batch}",
    )
    o = c.optimizer
    for name in ("beta1", "beta2"):
        value = getattr(o, name)
        _require(0 <= value < 1, f"optimizer.{name}={value}: must lie in 0..1, below 1")
    for name in ("eps", "clip"):
        value = getattr(o, name)
        _require(value > 0, f"optimizer.{name}={value}: must be above 0")
    _require(o.weight_decay >= 0, f"optimizer.weight_decay={o.weight_decay}: must not be negative")
    _require(0 <= c.evaluation.dense_until <= 1, "evaluation.dense_until: is a share and must lie in 0..1")
    for tokens in ("validation_tokens", "shard_tokens"):
        parse_tokens(f"data.{tokens}", getattr(c.data, tokens))
    _require(
        c.model.max_context is None or c.train.context <= c.model.max_context,
        f"train.context={c.train.context}: is longer than the model's {c.model.max_context}",
    )


def from_hydra(cfg: DictConfig) -> Config:
    """Return the frozen, checked config of a composed one. Raises `UserError` for what cannot be."""
    _check_keys(cfg, Config)
    try:
        result = OmegaConf.to_object(cfg)
    except InterpolationToMissingValueError as error:  # what was asked for follows another value, which is missing
        key = first_line(error).split()[-1]
        raise UserError(f"{key}: needs a value; give {key}=…") from error
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: needs a value; give {error.full_key}=…") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or to another type
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(result, Config)
    for f in fields(Config):
        value = getattr(result, f.name)
        # An interpolation can put something else in the place of a group.
        if hasattr(f.default_factory, "__dataclass_fields__") and not is_dataclass(value):
            raise UserError(f"{f.name}={value}: is a group of keys, not a value; give {f.name}.KEY=…")
    for key in _missing(result):
        raise UserError(f"{key}: needs a value; give {key}=…")
    return check(result)


def _check_keys(group: DictConfig, kind: type, prefix: str = "") -> None:
    """Raise `UserError` for a key that was added by force, ++KEY=…, and that `kind` does not have."""
    known = {f.name: f for f in fields(kind)}
    for key in map(str, group):
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown key{nearest(key, list(known))}")
        inner: Any = known[key].default_factory
        if (
            is_dataclass(inner)
            and not OmegaConf.is_interpolation(group, key)
            and not OmegaConf.is_missing(group, key)
        ):
            value = group[key]
            if isinstance(value, DictConfig):
                _check_keys(value, cast("type", inner), f"{prefix}{key}.")


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config that a run folder's `config.yaml` holds."""
    try:
        result = OmegaConf.to_object(OmegaConf.merge(schema(), values))
    except OmegaConfBaseException as error:
        raise UserError(f"config.yaml: {first_line(error)}") from error
    assert isinstance(result, Config)
    return result


def _missing(group: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is still to be given."""
    for f in fields(group):  # type: ignore[arg-type]
        value = getattr(group, f.name)
        if is_dataclass(value):
            yield from _missing(value, f"{prefix}{f.name}.")
        elif value == MISSING:
            yield f"{prefix}{f.name}"
