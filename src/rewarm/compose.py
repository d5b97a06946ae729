"""Composing a config with Hydra: what `conf/` needs for it, and what Hydra's errors mean to a user."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from rewarm.checks import from_hydra
from rewarm.config import SIDES, Config, SourceConfig, conf_dir, schema
from rewarm.errors import RewarmError, UserError, choice, first_line, nearest

SOURCES = tuple(f"data.{side}" for side in SIDES)


def run_name(swept: str, seed: int) -> str:
    """Return the folder name of a run out of the overrides that differ between runs, and its seed."""
    name = re.sub(r"(^|,)arm=", r"\1", swept).replace("/", "-")
    return f"{name},seed={seed}" if name else f"seed={seed}"


def register() -> None:
    """Make the schema and the resolvers that `conf/` uses known to Hydra and OmegaConf."""
    ConfigStore.instance().store("schema", schema())
    OmegaConf.register_new_resolver("times", lambda a, b: float(a) * float(b), replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


register()  # on import, because a sweep's worker processes import this module and compose configs of their own


def compose_config(*overrides: str) -> Config:
    """Return the checked config of these overrides, as a verb gets it. Raises `UserError` for a mistake in them."""
    register()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return from_hydra(hydra.compose("config", overrides=["run_dir=unused", *overrides]))
    except RewarmError:
        raise
    except Exception as error:
        raise explain(error) from error


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield f"{prefix}{key}"
        child = node._get_node(key)  # noqa: SLF001 - reading through [] would resolve missing values
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():  # noqa: SLF001
            yield from _keys(child, f"{prefix}{key}.")


def explain(error: Exception) -> UserError:
    """Return the one line that tells a user what Hydra or OmegaConf found wrong."""
    text = str(error)
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '(?P<group>.+)/(?P<name>[^/']+)'", text)
        if found:
            known = re.findall(r"^\t(\S+)$", text.split("Config search path", maxsplit=1)[0], re.MULTILINE)
            return choice(found["group"], found["name"], known)
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: cannot be read as key=value ({first_line(error)})")
    missing = re.search(r"Could not (?:override|append|delete)[^']*'\+?([^'=]+)", text)
    if missing and not str(cause).startswith("Value"):
        key = missing[1].split("@")[0]
        side, _, inside = key.rpartition(".")
        if side in SOURCES and inside in {f.name for f in fields(SourceConfig)}:
            return UserError(f"{key}: is not among the keys that data=… gives; add it with +{key}=…")
        return UserError(f"{key}: unknown key{nearest(key, _keys(schema()))}")
    full_key = re.search(r"full_key: (\S+)", str(cause)) or re.search(r"full_key: (\S+)", text)
    where = full_key[1] if full_key else ""
    if isinstance(cause, MissingMandatoryValue):
        return UserError(f"{where}: needs a value; give {where}=…")
    given = re.search(r"(?:merging override|parsing override) '?(.+?)'?$", first_line(error))
    what = given[1] if given else where
    reason = first_line(cause)
    return UserError(f"{what or ' '.join(sys.argv[1:])}: {reason}")
