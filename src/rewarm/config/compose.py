"""Composing a config with Hydra: what `conf/` needs for it, and what Hydra's errors mean to a user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from rewarm.config.checks import check
from rewarm.config.differences import flat
from rewarm.config.schema import SIDES, Config, SourceConfig
from rewarm.config.shipped import conf_dir, defaults
from rewarm.config.values import build, parse_tokens, quoted, taken_by
from rewarm.errors import RewarmError, UserError, choice, first_line, nearest

RENAMED = {"experiment.horizon": "budget"}
"""Keys of earlier versions, and what to give instead."""
SOURCES = tuple(f"data.{side}" for side in SIDES)


def times(factor: float, number: object) -> object:
    """Return a product; what is no number as it is, so that its own key refuses it."""
    try:
        return factor * float(str(number))
    except ValueError:
        return number


def scaled(part: object, whole: object, tokens: object) -> int | None:
    """Return the share of `tokens` that `part` is of `whole`; None where `budget` will be refused."""
    try:
        part, whole, tokens = (parse_tokens("budget", value) for value in (part, whole, tokens))
    except UserError:
        return None
    return max(1, round(part * tokens / whole))


def register() -> None:
    """Make the keys, their defaults and the resolvers that `conf/` uses known to Hydra and OmegaConf."""
    ConfigStore.instance().store("schema", OmegaConf.create(defaults()))
    OmegaConf.register_new_resolver("times", times, replace=True)
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)


register()


def compose(*overrides: str, folders: Sequence[Path] = (), with_hydra: bool = False) -> DictConfig:
    """Return the config of these overrides, composed of `conf/` and `folders` like it, not yet checked.

    `with_hydra` keeps Hydra's own node, in which an experiment says what it sweeps over. Raises `UserError` for a
    mistake that Hydra finds.
    """
    register()
    places = quoted([f"file://{folder}" for folder in folders])
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            found = hydra.compose(
                "config",
                overrides=[*([f"hydra.searchpath={places}"] if folders else []), *overrides],
                return_hydra_config=with_hydra,
            )
    except RewarmError:
        raise
    except Exception as error:
        raise explain(error, overrides) from error
    return found


def compose_config(*overrides: str) -> Config:
    """Return the checked config of these overrides, as a verb gets it. Raises `UserError` for a mistake in them."""
    return from_hydra(compose("run_dir=unused", *overrides))


def from_hydra(cfg: DictConfig) -> Config:
    """Return the frozen, checked config of a composed one. Raises `UserError` for what cannot be."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except InterpolationToMissingValueError as error:  # what was asked for follows another value, which is missing
        key = first_line(error).split()[-1]
        raise UserError(f"{key}: needs a value; give {key}=…") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UserError(f"{_holder(cfg, error)}: {first_line(error)}") from error
    return check(build(Config, values))


def _holder(cfg: DictConfig, error: OmegaConfBaseException) -> str:
    """Return the key that holds an interpolation which leads nowhere; the error names one that may only follow it."""
    found = re.search(r"Interpolation key '(.+)' not found", str(error))
    written = flat(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    holders = [key for key, value in written.items() if found and f"${{{found[1]}" in str(value)]
    return holders[0] if holders else str(error.full_key)


def _keys(group: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in group.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def explain(error: Exception, overrides: Sequence[str] = ()) -> UserError:
    """Return the one line that tells a user what Hydra or OmegaConf found wrong with these overrides."""
    text = str(error)
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '(?P<group>.+)/(?P<name>[^/']+)'", text)
        if found:
            known = re.findall(r"^\t(\S+)$", text.split("Config search path", maxsplit=1)[0], re.MULTILINE)
            return choice(found["group"], found["name"], known)
    if several := re.match(r"Ambiguous value for argument '(?P<key>[^=]+)=(?P<values>[^']*)'", text):
        key, values = several["key"], several["values"]
        number = re.fullmatch(r"(\d+),(\d+[kmbtKMBT]?)", values)
        or_else = f"write {number[1]}.{number[2]}" if number else f"for a list write {key}=[{values}]"
        return UserError(f"{key}={values}: gives several values; add -m to run one after the other, or {or_else}")
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: cannot be read as key=value ({first_line(error)})")
    missing = re.search(r"Could not (?:override|append|delete)[^']*'\+?([^'=]+)", text)
    if missing and not str(cause).startswith("Value"):
        key = missing[1].split("@")[0]
        side, _, inside = key.rpartition(".")
        if side in SOURCES and inside in taken_by(SourceConfig):
            return UserError(f"{key}: is not among the keys that data=… gives; add it with +{key}=…")
        instead = f"; give {RENAMED[key]}=…" if key in RENAMED else nearest(key, _keys(defaults()))
        return UserError(f"{key}: unknown key{instead}")
    full_key = re.search(r"full_key: (\S+)", str(cause)) or re.search(r"full_key: (\S+)", text)
    where = full_key[1] if full_key else ""
    given = re.search(r"(?:merging override|parsing override) '?(.+?)'?$", first_line(error))
    what = given[1] if given else where
    reason = first_line(cause)
    return UserError(f"{what or ' '.join(overrides)}: {reason}")
