"""Models of several sizes: which runs can be compared, and a larger model that is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rewarm.config.compose import compose_config
from rewarm.config.schema import Config
from rewarm.config.shipped import conf_dir
from rewarm.errors import UserError
from rewarm.forecast.coverage import of_usual_start
from rewarm.forecast.curves import Curve, parameters_of
from rewarm.forecast.fitted import sides_of, sizes_of
from rewarm.forecast.laws import SAME_SIZE, size_text
from rewarm.forecast.options import Options, parse_size


def check_sizes(curves: Sequence[Curve]) -> None:
    """Raise `UserError` for runs of several models whose losses cannot be compared."""
    known = {curve.name: curve.trajectory.parameters for curve in curves}
    said = [size for size in known.values() if size]
    unknown = [name for name, size in known.items() if not size]
    if unknown and said and max(said) > min(said) * (1 + SAME_SIZE):
        raise UserError(
            f"{unknown[0]}: nothing tells the size of its model, and the others' differ; "
            "give PATH:parameters=25M (without embeddings)"
        )
    if sizes_of(curves):
        for what, of in (("tokenizer", _tokenizer), ("data", _data)):
            found = {of(c.config): c.name for c in curves if c.config is not None}
            if len(found) > 1:
                (one, a), (other, b), *_ = found.items()
                raise UserError(
                    f"models of several sizes need one {what}: {a} has {one}, {b} has {other}; leave one out"
                )


def _tokenizer(config: Config) -> str:
    return config.data.tokenizer


def _data(config: Config) -> str:
    return f"{config.data.name} ({config.data.upstream.path}, {config.data.downstream.path})"


def with_target(curves: list[Curve], options: Options) -> list[Curve]:
    """Return the curves, and where the target has no run of its own its losses before any update as one.

    Raises `UserError` for a target that the runs tell nothing about.
    """
    if not options.target:
        if options.start_loss:
            raise UserError("start_loss: of which model? Give target=MODEL, or target=6.9B")
        return curves
    name, of_name = options.target, None
    if (conf_dir() / "model" / f"{name}.yaml").is_file():
        of_name = compose_config(f"model={name}").model
        size = parameters_of(of_name)
        if size is None:
            raise UserError(f"target={name}: its config does not tell its size; give its parameters, target=6.9B")
    else:
        try:
            size = parse_size("target", name)
        except UserError as error:
            raise UserError(f"target={name}: neither a model of conf/model nor a number of parameters") from error
    known = [curve.trajectory.parameters for curve in curves]
    if any(one is None for one in known):
        raise UserError(f"target={name}: nothing tells the size of the runs' model; give PATH:parameters=25M")
    sizes = [one for one in known if one is not None]
    if size * (1 + SAME_SIZE) < max(sizes):
        raise UserError(
            f"target={name}: has {size_text(size)} parameters, the runs' largest model {size_text(max(sizes))}"
        )
    if size <= max(sizes) * (1 + SAME_SIZE):
        return curves
    sides = sides_of(curves)
    if len(options.start_loss) != len(sides):
        asked = ",".join(side.upper() for side in sides)
        raise UserError(
            f"target={name}: no run is of its size ({size_text(size)}): add a short one, or give its losses before "
            f"any update, start_loss={asked} (`rewarm eval` measures them)"
        )
    like = of_usual_start(curves)[0]
    begun = {
        side: (np.zeros(1, dtype=np.int64), np.array([loss]))
        for side, loss in zip(sides, options.start_loss, strict=True)
    }
    config = None
    if like.config is not None and of_name is not None:
        config = replace(like.config, model=of_name, init=of_name.init)
    trajectory = replace(like.trajectory, parameters=size, pretraining=None)
    return [*curves, Curve(name, name, trajectory, begun, like.planned_steps, config)]
