"""From the arguments of a verb to the one run that they ask for, checked; or to a sweep, which is then done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from rewarm.commands.sweep import sweep
from rewarm.config.command_line import CommandLine, parse
from rewarm.config.compose import from_hydra
from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import Config
from rewarm.errors import UserError


@dataclass(frozen=True)
class Asked:
    """One run that was asked for: its config, and what that means in steps."""

    config: Config
    plan: Plan = field(repr=False)
    overrides: tuple[str, ...]


def begin(verb: str, arguments: Sequence[str]) -> Asked | None:
    """Return the one run that a command line asks for. Raises `UserError` for the first mistake in it.

    None where it asks for a sweep, which is then done, or for the config, which is then printed.
    """
    line = parse(arguments)
    if line.sweeps:
        sweep(verb, line)
        return None
    check_alone(line)
    composed = line.compose()
    if line.shows:
        from_hydra(composed)
        sys.stdout.write(OmegaConf.to_yaml(composed, resolve=True))
        return None
    config = from_hydra(composed)
    return Asked(config, make_plan(config), line.overrides)


def check_alone(line: CommandLine) -> None:
    """Raise `UserError` where a command line asks for half a sweep."""
    given = line.given
    if "seeds" in given:
        raise UserError(f"seeds={given['seeds']}: repeats the arms of a sweep; add -m")
    name = given.get("experiment", "null")
    if name != "null":
        missing = [key for key in line.swept_by_experiment() if key not in given]
        if missing:
            raise UserError(
                f"experiment={name}: is a sweep over {missing[0]}; add -m, or choose one with {missing[0]}=…"
            )
