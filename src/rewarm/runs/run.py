"""A run that was made: the one reader of run folders, for all that comes after training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rewarm.config.checks import from_dict
from rewarm.config.plan import Extension, Plan, horizon_of, logged, make_plan
from rewarm.config.schema import Config
from rewarm.config.values import MISSING
from rewarm.errors import DataError, UserError, first_line
from rewarm.runs import checkpoint
from rewarm.runs.folder import CONFIG, MANIFEST, METRICS, SUMMARY
from rewarm.runs.manifest import Manifest, parse_manifest
from rewarm.runs.metrics import Metrics, Values, numbered, read_metrics
from rewarm.runs.stopped import STOPPED, Stopped, parse_stopped
from rewarm.runs.summary import fault_of
from rewarm.schedules import lr_curve

PUT_BACK = "put it back from a copy, or go on without this run"
WRITTEN_AGAIN = "remove it, and the run's own command writes it again"
DROPPED = "remove it, and the run counts as interrupted"
SHORT = 10_000
"""Characters that libyaml can read however deeply they are nested; some 30,000 would end the process."""


@dataclass(frozen=True)
class Run:
    """A run as its folder has it, whether it is finished or not."""

    path: Path
    config: Config
    """What was asked for; a key that came after the run has its default."""
    manifest: Manifest
    plan: Plan
    """What it means in steps, with the learning rates that were run: extensions are in it."""
    summary: Mapping[str, Any] | None
    """What it came to, as `summary.json` has it; None while it has not finished."""

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        """Return whether it came to its end."""
        return self.summary is not None

    @cached_property
    def stopped(self) -> Stopped | None:
        """Return why its sweep left it; None where it was not left, or has gone on since."""
        values = None if self.finished else load(self.path / STOPPED, json.loads, DROPPED)
        if values is None:
            return None
        try:
            stopped = parse_stopped(values)
        except ValueError as error:
            raise DataError(f"{self.path / STOPPED}: is damaged ({error}); {DROPPED}") from error
        return stopped if stopped.step == self.trained else None

    @property
    def seed(self) -> int:
        """Return its seed."""
        return self.config.seed

    @cached_property
    def metrics(self) -> Metrics:
        """Return everything that was logged, read when it is first asked for."""
        return read_metrics(self.path / METRICS)

    def loss(self, side: str, domain: str | None = None, against: str = "tokens") -> tuple[Values, Values]:
        """Return tokens (or steps) and losses in nats a token of one side, or of one domain of it."""
        return self.metrics.curve(f"{side}/loss" if domain is None else f"{side}/domain/{domain}/loss", against)

    def domains(self, side: str) -> list[str]:
        """Return the domains of one side that were scored apart."""
        prefix, end = f"{side}/domain/", "/loss"
        names = (name for name in self.metrics.columns if name.startswith(prefix) and name.endswith(end))
        return sorted(name[len(prefix) : -len(end)] for name in names)

    @cached_property
    def lr(self) -> Values:
        """Return the learning rate of each update that the run was made or planned for: `lr[t - 1]` is update t's."""
        return lr_curve(self.plan.schedule, np.arange(1, self.plan.steps + 1))

    @cached_property
    def other_lr(self) -> str | None:
        """Return in one line where another learning rate was logged than the config gives; None where none was.

        So it is with a training of another trainer's that did not follow the schedule that it was said to follow.
        """
        steps, rates = self.metrics.curve("lr", "step")
        done = (steps > 0) & (steps <= len(self.lr))
        steps, rates = steps[done].astype(np.int64), rates[done]
        unlike = np.abs(rates - self.lr[steps - 1]) > 1e-6 * self.config.max_lr
        if not unlike.any():
            return None
        step, rate = int(steps[unlike][0]), float(rates[unlike][0])
        planned = self.lr[step - 1]
        return f"{self.path}: had the learning rate {rate:.6g} at step {step}, where its schedule gives {planned:.6g}"

    @property
    def horizon(self) -> int:
        """Return the horizon in tokens."""
        return horizon_of(self.config)[1]

    @property
    def warmup_tokens(self) -> float:
        """Return the tokens after which the warm-up ends."""
        return self.config.warmup * self.horizon

    @property
    def checkpoints(self) -> list[int]:
        """Return the steps whose checkpoints are there, in order."""
        return checkpoint.steps(self.path / checkpoint.CHECKPOINTS)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, which `AutoModelForCausalLM.from_pretrained` loads."""
        return checkpoint.folder_of(self.path / checkpoint.CHECKPOINTS, step)

    @property
    def trained(self) -> int:
        """Return the last step that is known to have been trained; -1 where nothing was even scored."""
        logged: list[int] = self.metrics.steps[-1:].tolist()
        return max(-1, *logged, *self.checkpoints[-1:], self.plan.steps if self.finished else -1)

    @cached_property
    def lost(self) -> list[int]:
        """Return the steps up to the last one whose lines are not in `metrics.jsonl`, and should be."""
        absent = np.setdiff1d(np.arange(self.trained + 1), self.metrics.steps)
        return sorted(logged(self.config, self.manifest.extensions, absent.tolist()))

    @property
    def damage(self) -> str | None:
        """Return in one line what of the metrics is damaged or missing, and what to do; None where all is there."""
        return describe_damage(self.path / METRICS, self.metrics.damaged, self.lost)


def describe_damage(file: Path, damaged: Sequence[int], lost: Sequence[int]) -> str | None:
    """Return the line about damaged lines of a file and about steps that have none; None where all is there."""
    said = [f"{numbered(damaged, 'line', 'lines')} cannot be read"] if damaged else []
    said += [f"the values of {numbered(lost, 'step', 'steps')} are lost"] if lost else []
    return f"{file}: {', '.join(said)}; put the file back from a copy" if said else None


def open_run(path: Path) -> Run:
    """Return the run in a folder. Raises `DataError`, which says the file and the mend, where one is damaged."""
    config, manifest = read_config(path), read_manifest(path)
    plan = _plan(path / CONFIG, config)
    if manifest.extensions:
        plan = _plan(path / MANIFEST, config, manifest.extensions)
    return Run(path, config, manifest, plan, read_summary(path))


def _plan(file: Path, config: Config, extensions: Sequence[Extension] = ()) -> Plan:
    try:
        return make_plan(config, extensions)
    except (UserError, ArithmeticError) as error:
        raise DataError(f"{file}: is not that of a run ({error}); {PUT_BACK}") from error


def read_config(path: Path) -> Config:
    """Return the config of the run in a folder. Raises `DataError` where it cannot be read."""
    file = path / CONFIG
    values = load(file, _yaml, PUT_BACK)
    if values is None:
        raise DataError(f"{path}: holds no run, as it has no {CONFIG}")
    try:
        config = from_dict(values)
    except UserError as error:
        raise DataError(f"{file}: is not the config of a run ({first_line(error)}); {PUT_BACK}") from error
    if lacks := _missing(config):
        raise DataError(f"{file}: is not the config of a run ({lacks} is missing); {PUT_BACK}")
    return config


def _yaml(text: str) -> Any:  # noqa: ANN401 - any YAML value
    """Return what YAML holds, by libyaml, ten times as fast, where it is there and cannot run out of stack."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, fast if len(text) < SHORT else yaml.SafeLoader)  # noqa: S506 - both are safe


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the run in a folder, an empty one where it has none."""
    values = load(path / MANIFEST, json.loads, PUT_BACK)
    try:
        return Manifest() if values is None else parse_manifest(values)
    except UserError as error:
        raise DataError(f"{path / MANIFEST}: is not the manifest of a run ({error}); {PUT_BACK}") from error


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the summary of the run in a folder, None where it has not finished."""
    summary = load(path / SUMMARY, json.loads, WRITTEN_AGAIN)
    if summary is not None and (fault := fault_of(summary)):
        raise DataError(f"{path / SUMMARY}: is not the summary of a run ({fault}); {WRITTEN_AGAIN}")
    return summary


def load(path: Path, parse: Callable[[str], Any], mend: str) -> dict[str, Any] | None:
    """Return the mapping that a file of a run holds, None where there is none.

    Raises `DataError` with the mend where it cannot be read, or holds something else.
    """
    try:
        value = parse(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is damaged ({first_line(error)}); {mend}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: is damaged (it holds {'nothing' if value is None else 'no mapping'}); {mend}")
    return value


def _missing(group: object, prefix: str = "") -> str | None:
    """Return the dotted key of the first value that a config must have and lacks."""
    for f in fields(group):  # type: ignore[arg-type]
        value = getattr(group, f.name)
        inside = _missing(value, f"{prefix}{f.name}.") if is_dataclass(value) else None
        if inside or (isinstance(value, str) and value == MISSING):
            return inside or f"{prefix}{f.name}"
    return None


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run."""
    return os.path.lexists(path / CONFIG) and any(os.path.lexists(path / name) for name in (METRICS, MANIFEST))


def read_losses(path: Path, side: str) -> dict[int, float]:
    """Return the finite losses of one side by step, of the run in a folder whose other files need not be there."""
    steps, losses = read_metrics(path / METRICS).curve(f"{side}/loss", "step")
    return dict(zip(steps.astype(int).tolist(), losses.tolist(), strict=True))


def run_named(init: str) -> Path | None:
    """Return the folder of the run that `init` names, or names a checkpoint of; None where it names none."""
    base = Path(init.partition("@")[0]).expanduser()
    return next((path for path in (base, checkpoint.run_of(base)) if path and is_run(path)), None)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders at or under `paths`, in order. Raises `UserError` where one of them holds none."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give a run's folder or a sweep's")
        here = sorted(_walk(path))
        if not here:
            raise UserError(f"{path}: holds no run; give a run's folder or a sweep's")
        found |= dict.fromkeys(here)
    return list(found)


def _walk(path: Path) -> Iterable[Path]:
    for folder, inside, _ in os.walk(path, followlinks=True):
        inside[:] = [name for name in inside if not name.endswith(".fork.tmp")]  # left by a command that was killed
        if is_run(Path(folder)):
            inside[:] = [name for name in inside if name != checkpoint.CHECKPOINTS]
            yield Path(folder)
