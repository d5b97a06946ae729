"""What the learning rate did before a run began: the pre-training that a law's S1 and S2 also count."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewarm.checks import from_hydra
from rewarm.config import Config, schema
from rewarm.errors import DataError, RewarmError, UserError, first_line
from rewarm.plan import make_plan
from rewarm.rundir import RunFolder
from rewarm.schedules import ScheduleSpec, lr_curve

Array = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Published:
    """A pre-training whose schedule is public: a cosine after 1 % warm-up, from the peak to the final LR."""

    steps: int
    tokens_per_step: int


PYTHIA = Published(steps=143_000, tokens_per_step=1024 * 2048)
BUILTIN = Published(steps=4_000, tokens_per_step=32 * 128)
"""16.4M tokens, the batch of `scale=local`."""


@dataclass(frozen=True)
class Pretraining:
    """Stretches of training before a run, in order: the LR of each update, and the tokens of one."""

    stretches: tuple[tuple[Array, float], ...] = ()

    @property
    def final_lr(self) -> float | None:
        """Return the LR of the last update, or None where nothing was trained."""
        return float(self.stretches[-1][0][-1]) if self.stretches else None


@cache
def _defaults() -> dict[str, Any]:
    from rewarm.compose import compose_config

    return asdict(compose_config())


def read_config(folder: RunFolder) -> Config:
    """Return the config of a run. Raises `DataError` where this version cannot read it.

    Keys that came after the run, in a version of its own, have their default.
    """
    given = folder.read_config()
    values = {
        key: {**default, **given.get(key, {})} if isinstance(default, dict) else given.get(key, default)
        for key, default in _defaults().items()
    }
    try:
        return from_hydra(DictConfig(OmegaConf.merge(schema(), OmegaConf.create(given | values))))
    except (OmegaConfBaseException, UserError) as error:
        raise DataError(f"{folder.path / 'config.yaml'}: cannot be read ({first_line(error)})") from error


def _published(config: Config, known: Published, step: int | None) -> Pretraining:
    spec = ScheduleSpec(
        name="cosine",
        max_lr=config.model.peak_lr,
        min_lr=config.model.final_lr,
        warmup_steps=round(0.01 * known.steps),
        total_steps=known.steps,
    )
    updates = np.arange(1, (known.steps if step is None else step) + 1)
    return Pretraining(((lr_curve(spec, updates), float(known.tokens_per_step)),) if len(updates) else ())


def _of_run(run: Path, step: int | None) -> Pretraining | None:
    """Return what a checkpoint of another run has behind it: that run's own history, and its updates."""
    try:
        config = read_config(RunFolder(run))
        plan = make_plan(config)
    except RewarmError:
        return None
    before = pretraining_of(config, run)
    if before is None:
        return None
    updates = np.arange(1, (plan.steps if step is None else step) + 1)
    return Pretraining((*before.stretches, (lr_curve(plan.schedule, updates), float(plan.tokens_per_step))))


def pretraining_of(config: Config, run: Path) -> Pretraining | None:
    """Return the history behind `config.init` of the run in folder `run`, or None where it is not known.

    Known are scratch, the built-in checkpoints, Pythia's revisions, and checkpoints of runs still on disk.
    """
    base, _, revision = config.init.partition("@")
    number = re.fullmatch(r"(?:step-?)?(\d+)", revision)
    step = int(number[1]) if number else None
    if base == "scratch":
        return Pretraining()
    if base == "builtin":
        return _published(config, BUILTIN, step)
    if re.fullmatch(r"EleutherAI/pythia-[0-9.]+[mb](-deduped)?", base):
        return _published(config, PYTHIA, step) if number or revision in ("", "main") else None
    for folder in (Path(base).expanduser(), run.parent / base):
        inside = re.fullmatch(r"step-(\d+)", folder.name)
        if inside and folder.parent.name == "checkpoints":
            return _of_run(folder.parents[1], int(inside[1])) if RunFolder(folder.parents[1]).exists() else None
        if RunFolder(folder).exists() and folder.resolve() != run.resolve():
            return _of_run(folder, step)
    return None
