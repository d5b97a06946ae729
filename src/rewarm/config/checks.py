"""What several keys must be together: every impossible combination is refused in one line, at the door.

What one key may be stands beside it, in its annotation in the schema.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from rewarm.config.plan import make_plan
from rewarm.config.schema import SIDES, Config, ModelConfig, SourceConfig
from rewarm.config.values import build
from rewarm.errors import UserError
from rewarm.schedules import SHAPE_PARAMETERS


def _require(ok: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not ok:
        raise UserError(message)


def check(config: Config) -> Config:
    """Raise a `UserError` for the first impossible combination, and return the config, without a proxy if unused."""
    c = config
    _require(
        not (c.init_optimizer and c.init == "scratch"),
        "init_optimizer=true: init=scratch has no optimizer state; name a checkpoint, or leave it out",
    )
    _require(
        c.max_lr * c.optimizer.weight_decay < 1,
        f"optimizer.weight_decay={c.optimizer.weight_decay}: takes a whole weight in one step at max_lr={c.max_lr}; "
        f"lower one of them",
    )
    _require(
        c.max_lr * c.anchor.l2 < 1,
        f"anchor.l2={c.anchor.l2:g}: takes weights all the way back in one step at max_lr={c.max_lr:g}; lower it",
    )
    for key, value in (("l2", c.anchor.l2), ("kl", c.anchor.kl)):
        _require(
            value == 0 or c.train.parallel == "ddp",
            f"anchor.{key}={value:g}: does not go with train.parallel={c.train.parallel}; leave one of them out",
        )
    _require(
        c.anchor.kl == 0 or c.init != "scratch",
        f"anchor.kl={c.anchor.kl:g}: there is nothing to stay near to with init=scratch; leave one of them out",
    )
    goal = {"weights": c.sweep.weights, "max_forgetting": c.sweep.max_forgetting}
    for key, given in goal.items():
        _require(
            given is None or c.sweep.stop == "forecast",
            f"sweep.{key}={given}: has no effect without sweep.stop=forecast; leave it out",
        )
    _require(
        c.sweep.weights is None or (len(c.sweep.weights) == 2 and sum(c.sweep.weights) > 0),
        f"sweep.weights={c.sweep.weights}: takes two numbers, upstream's and downstream's, not both 0; "
        f"for example sweep.weights=[1,1]",
    )
    _require(
        c.sweep.stop == "none" or c.sweep.trials is None,
        f"sweep.stop={c.sweep.stop}: does not go with sweep.trials={c.sweep.trials}, where every end counts; "
        f"leave one of them out",
    )
    _require(
        c.average.device == "model" or c.train.parallel == "ddp",
        f"average.device=host: does not go with train.parallel={c.train.parallel}; leave one of them out",
    )
    _require(
        c.replay == 0 or c.data.train == "downstream",
        f"replay={c.replay}: has no meaning with data.train=upstream; leave it out",
    )
    _require(
        c.scaler.min_scale <= c.scaler.init_scale,
        f"scaler.min_scale={c.scaler.min_scale}: is above scaler.init_scale={c.scaler.init_scale}",
    )
    _require(
        c.stop is None or c.stop <= c.budget,
        f"stop={c.stop}: lies after the end of budget={c.budget}; give a larger budget, or leave it out",
    )
    _check_schedule(c)
    _check_model(c.model)
    _check_step(c)
    c = _check_sources(c)
    make_plan(c)
    return c


def _check_schedule(c: Config) -> None:
    s = c.schedule
    readable = SHAPE_PARAMETERS.get(s.name, ())
    for f in fields(s):
        value = getattr(s, f.name)
        _require(
            f.name == "name" or value is None or f.name in readable,
            f"schedule.{f.name}={value}: has no effect with schedule={s.name}; leave it out",
        )
    if s.cooldown_end is not None and s.constant_end is not None:
        _require(
            s.cooldown_end <= s.constant_end,
            f"schedule.cooldown_end={s.cooldown_end}: must not lie after constant_end={s.constant_end}",
        )
    _require(
        s.name != "no_rewarm" or c.warmup == 0,
        f"warmup={c.warmup}: schedule=no_rewarm has no warm-up; use schedule=cosine for one",
    )


def _check_model(m: ModelConfig) -> None:
    if m.hidden_size is None or m.heads is None:
        return
    _require(
        m.hidden_size % m.heads == 0,
        f"model.heads={m.heads}: must divide model.hidden_size={m.hidden_size}",
    )


def _check_step(c: Config) -> None:
    t = c.train
    _require(
        t.micro_batch_size is None or t.batch_size % t.micro_batch_size == 0,
        f"train.micro_batch_size={t.micro_batch_size}: must divide train.batch_size={t.batch_size}",
    )
    _require(
        c.model.max_context is None or t.context <= c.model.max_context,
        f"train.context={t.context}: is longer than the model's {c.model.max_context}",
    )


def _check_sources(c: Config) -> Config:
    found = {f"data.{side}": getattr(c.data, side) for side in SIDES}
    found |= {"replay_source": c.replay_source} if c.replay_source else {}
    if any(source.kind == "proxy" for source in found.values()):
        found["data.proxy"] = c.data.proxy
    for key, source in found.items():
        _check_source(key, source)
    if c.source("replay").kind == "self":
        _require(
            c.init != "scratch",
            "replay_source=self: a model of random weights (init=scratch) writes noise; leave one of them out",
        )
    else:
        given = [f.name for f in fields(c.generate) if getattr(c.generate, f.name) != f.default]
        _require(not given, f"generate.{''.join(given[:1])}: has no effect without replay_source=self; leave it out")
    # One that nothing reads is none of the run's settings.
    return c if "data.proxy" in found else replace(c, data=replace(c.data, proxy=SourceConfig()))


KINDS_OF = {"proxy": ("data.upstream", "replay_source"), "self": ("replay_source",)}
"""Sources that only some keys can have."""


def _check_source(key: str, source: SourceConfig) -> None:
    keys = KINDS_OF.get(source.kind, (key,))
    _require(key in keys, f"{key}={source.kind}: only {' and '.join(keys)} can be that; give a path or a dataset")
    needed = {"files": "path", "hub": "id", "builtin": "weights"}.get(source.kind)
    _require(
        needed is None or bool(getattr(source, needed)),
        f"{key}.{needed}: a source of kind {source.kind} needs it",
    )


GONE = {"experiment": ("horizon",)}
"""Keys by group that earlier versions wrote into `config.yaml`, and that nothing follows any more."""


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config that a run folder's `config.yaml` holds.

    Keys that came after the run, in a version of its own, have their default. Raises `UserError` for what no version
    of this format holds.
    """
    kept = {
        name: {key: v for key, v in value.items() if key not in GONE[name]}
        if name in GONE and isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    return build(Config, kept, saved=True)
