"""What stands behind a verb: a sweep or one run, folders of configs, a file of keys, and the overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from rewarm.config.compose import compose
from rewarm.config.shipped import conf_dir, defaults
from rewarm.config.values import quoted
from rewarm.errors import UserError, first_line, nearest

FLAGS = ("-m", "--multirun", "-cd", "--config-dir", "-c", "--cfg", "-h", "--help")
GROUPS = tuple(sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir()))
"""The groups of configs: what may stand on the right of each is a file in its folder."""


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a verb, told apart."""

    overrides: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    """Folders with configs of the user's own, laid out as `conf/`."""
    sweeps: bool = False
    shows: bool = False
    """Whether the config is to be printed, and nothing else done."""

    @property
    def given(self) -> dict[str, str]:
        """Return the overrides by key, as they were written; of several for a key the last."""
        return dict(a.split("=", 1) for a in self.overrides if "=" in a)

    def swept_by_experiment(self) -> dict[str, str]:
        """Return the keys that an experiment sweeps over, with their values: where Hydra's own sweeper has them."""
        params = OmegaConf.select(self.compose("run_dir=unused", with_hydra=True), "hydra.sweeper.params")
        return {str(key): str(value) for key, value in (params or {}).items()}

    def compose(self, *more: str, with_hydra: bool = False) -> DictConfig:
        """Return the composed config, not yet checked. Raises `UserError` for a mistake that Hydra finds."""
        return compose(*self.overrides, *more, folders=self.folders, with_hydra=with_hydra)


def parse(arguments: Sequence[str]) -> CommandLine:
    """Return the arguments told apart. Raises `UserError` for an option or a word that means nothing."""
    overrides: list[str] = []
    folders: list[Path] = []
    sweeps = shows = False
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if argument in ("-m", "--multirun"):
            sweeps = True
        elif flag in ("-cd", "--config-dir", "-c", "--cfg"):
            if not equals:
                value = left.pop(0) if left else ""
            if flag in ("-c", "--cfg"):
                if value != "job":
                    raise UserError(f"{flag} {value}: shows the config of the run: {flag} job")
                shows = True
            elif not Path(value).expanduser().is_dir():
                raise UserError(f"{flag} {value}: no such folder; give one that is laid out as conf/")
            else:
                folders.append(Path(value).expanduser().resolve())
        elif argument.startswith("-"):
            raise _unknown_option(argument)
        elif (not equals and not argument.startswith(("~", "+"))) or _is_file(argument):
            overrides += _of_word(argument)
        else:
            overrides.append(argument)
    return CommandLine(tuple(overrides), tuple(folders), sweeps, shows)


def _unknown_option(argument: str) -> UserError:
    """Return the error for an option: many command lines write `--max-lr 6e-4` for what is `max_lr=6e-4` here."""
    name, equals, value = argument.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if key.partition(".")[0] in (*defaults(), "scale"):
        return UserError(f"{argument}: overrides have no dashes: {key}={value if equals else '…'}")
    return UserError(
        f"{argument}: unknown option{nearest(argument.partition('=')[0], FLAGS)} (overrides are key=value)"
    )


def _is_file(word: str) -> bool:
    """Return whether a word is a file of keys; names of runs have equal signs in them."""
    try:
        return word.endswith((".yaml", ".yml")) and Path(word).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # no name that a file could have
        return False


def _of_word(word: str) -> list[str]:
    """Return the overrides of a file. Raises `UserError` for any other word, with what may have been meant."""
    if _is_file(word):
        return overrides_of(Path(word).expanduser())
    for group in GROUPS:
        if (conf_dir() / group / f"{word}.yaml").is_file():
            raise UserError(f"{word}: cannot be read as key=value; did you mean {group}={word}?")
    raise UserError(f"{word}: cannot be read as key=value, and is no YAML file")


def overrides_of(path: Path) -> list[str]:
    """Return the overrides that a YAML file of keys amounts to, such as the `config.yaml` of a run.

    Groups come first, as the rest is laid over them. Raises `UserError` for a file that holds anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: must hold keys and values, as a run's config.yaml does")
    groups, keys = [], []
    for key, value in content.items():
        if key in GROUPS and isinstance(value, str):
            groups.append(f"{key}={quoted(value)}")
        elif key in GROUPS and isinstance(value, dict):
            name = value.get("name")
            if (
                isinstance(name, str)
                and (conf_dir() / key / f"{name}.yaml").is_file()
                and key not in ("experiment", "arm")
            ):
                groups.append(f"{key}={name}")
            keys += [f"++{inner}={quoted(v)}" for inner, v in _leaves(value, f"{key}.")]
        else:
            keys += [f"++{inner}={quoted(v)}" for inner, v in _leaves({key: value})]
    return [*groups, *keys]


def _leaves(values: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _leaves(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return found
