"""The arms of a sweep: what `-m` expands to, each named and checked at the door."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from rewarm.commands.launch import Job
from rewarm.config.command_line import CommandLine
from rewarm.config.compose import explain, from_hydra
from rewarm.config.differences import differing
from rewarm.config.schema import Config
from rewarm.config.values import quoted
from rewarm.errors import UserError
from rewarm.runs.run import is_run, open_run

SAME_SWEEP = re.compile(r"[+~]*(seeds?|arm|run_dir|dry_run|tracker|sweep|hydra)\b")
"""Overrides that leave a sweep the sweep that it is: more seeds or arms of it go into the same folder."""
RENAMED = {
    "hydra/launcher": "give sweep.launcher=local or slurm, and sweep.jobs=… for the runs at once",
    "hydra.launcher": "give sweep.jobs=…, sweep.slurm.partition=… and the like (docs/scaling.md)",
    "hydra/sweeper": "give sweep.trials=…, with Optuna as rewarm[optuna] brings it",
    "hydra.sweeper": "give sweep.trials=…, with Optuna as rewarm[optuna] brings it",
}
"""Keys of earlier versions, and what to give instead."""


@dataclass(frozen=True)
class Arm(Job):
    """One run of a sweep, and the config that it asks for."""

    config: Config = field(repr=False)


@dataclass(frozen=True)
class Swept:
    """The overrides of a sweep: those that every arm has, and those that give several values."""

    fixed: tuple[str, ...]
    several: tuple[Override, ...]
    folder: Path
    config_dirs: tuple[Path, ...] = ()

    @classmethod
    def of(cls, line: CommandLine) -> Swept:
        """Return what a command line sweeps over. Raises `UserError` where it asks for half a sweep."""
        given = line.given
        for key in given:
            for old, instead in RENAMED.items():
                if key.lstrip("+~").startswith(old) and key != "hydra.sweeper.params":
                    raise UserError(f"{key}={given[key]}: {instead}")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                "-m: a sweep starts processes of its own; start it without torchrun, or one run of it with"
            )
        if "seeds" in given and "seed" in given:
            raise UserError(f"seeds={given['seeds']}: cannot go with seed={given['seed']}; give one of them")
        if "," in given.get("experiment", ""):
            raise UserError(
                f"experiment={given['experiment']}: give one at a time; experiment=all joins the paper's five"
            )
        written = [_seeds(given["seeds"]) if a.startswith("seeds=") else a for a in line.overrides]
        overrides = parse_overrides(written)
        fixed = [o for o in overrides if not o.is_sweep_override()]
        shared = CommandLine(tuple(str(o.input_line) for o in fixed), line.folders)
        named = {o.key_or_group for o in overrides}
        written = [f"{key}={value}" for key, value in shared.swept_by_experiment().items()]
        arms = [o for o in parse_overrides(written) if o.key_or_group not in named]
        fixed += [o for o in arms if not o.is_sweep_override()]
        several = [o for o in arms if o.is_sweep_override()] + [o for o in overrides if o.is_sweep_override()]
        named_dirs = [str(o.value()) for o in fixed if o.key_or_group == "run_dir"]
        folder = Path(named_dirs[-1]) if named_dirs else default_folder(overrides)
        lines = tuple(str(o.input_line) for o in fixed if o.key_or_group != "run_dir")
        return cls(lines, tuple(several), folder, line.folders)

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """Return the overrides of each arm that the others do not have."""
        for o in self.several:
            if o.is_interval_sweep():
                raise UserError(
                    f"{o.input_line}: an interval has no end of values; give choice(…), or sweep.trials=…"
                )
        yield from product(*([f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] for o in self.several))

    def arm(self, own: Sequence[str]) -> Arm:
        """Return the arm with these overrides of its own. Raises `UserError` for a mistake in them."""
        config = from_hydra(CommandLine((*self.fixed, *own), self.config_dirs).compose("run_dir=unused"))
        name = run_name([word for word in own if not word.startswith("seed=")], config.seed)
        folder = self.folder / name
        places = (f"--config-dir={place}" for place in self.config_dirs)
        arguments = (*places, *self.fixed, *own, f"run_dir={quoted(str(folder))}")
        return Arm(name, arguments, folder, replace(config, run_dir=str(folder)))

    def first(self) -> Arm:
        """Return the arm with the first of all values, intervals too. Raises `UserError` for a mistake in it."""
        return self.arm([f"{o.get_key_element()}={_first(o)}" for o in self.several])

    def arms(self) -> list[Arm]:
        """Return all arms, each checked. Raises `UserError` for the first mistake in any of them."""
        return [self.arm(own) for own in self.combinations()]


def _first(several: Override) -> str:
    """Return the first of the values that an override gives."""
    value = several.value()
    return str(value.start) if isinstance(value, IntervalSweep) else str(next(several.sweep_string_iterator()))


def run_name(own: Sequence[str], seed: int) -> str:
    """Return the folder name of a run out of the overrides that only it has, and its seed."""
    words = (re.sub(r"^arm=", "", word) for word in sorted(own))
    return ",".join((*words, f"seed={seed}")).replace("/", "-")


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra reads them. Raises `UserError` for one that it cannot."""
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise explain(error) from error


def _seeds(value: str) -> str:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"seeds={value}: must be a number of seeds, at least 1")
    return "seed=" + ",".join(map(str, range(int(value))))


def default_folder(overrides: Sequence[Override]) -> Path:
    """Return the folder of a sweep that names none: the same question finds the same folder again."""
    lines = {o.key_or_group: str(o.input_line) for o in overrides}
    names = [line.split("=", 1)[1] for key, line in lines.items() if key == "experiment"]
    swept = [o.key_or_group for o in overrides if o.is_sweep_override() and o.key_or_group != "seed"]
    label = "-".join([*names, *swept]) or "sweep"
    telling = sorted(line for line in lines.values() if not SAME_SWEEP.match(line))
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:8]
    return Path(f"runs/{re.sub(r'[^A-Za-z0-9_.-]', '-', label)}-{digest}")


def finished(arm: Arm) -> bool:
    """Return whether an arm was run to its end already, as it is asked for now."""
    if not is_run(arm.folder):
        return False
    run = open_run(arm.folder)
    return run.finished and not arm.config.extend and not differing(run.config, arm.config)
