"""What the learning rate did before a run began: the pre-training that a law's S1 and S2 also count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewarm.config.schema import Config
from rewarm.errors import RewarmError
from rewarm.model.init import UPSTREAM
from rewarm.runs import checkpoint
from rewarm.runs.run import Run, is_run, open_run
from rewarm.schedules import ScheduleSpec, lr_curve

Array = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Published:
    """A pre-training whose schedule is public: a cosine after 1 % warm-up, from the peak to the final LR."""

    steps: int
    tokens_per_step: int


PYTHIA = Published(steps=143_000, tokens_per_step=1024 * 2048)


@dataclass(frozen=True)
class Pretraining:
    """Stretches of training before a run, in order: the LR of each update, and the tokens of one."""

    stretches: tuple[tuple[Array, float], ...] = ()

    @property
    def final_lr(self) -> float | None:
        """Return the LR of the last update, or None where nothing was trained."""
        return float(self.stretches[-1][0][-1]) if self.stretches else None


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


def _of_run(path: Path, step: int | None, seen: frozenset[Path]) -> Pretraining | None:
    """Return what a checkpoint of another run has behind it: that run's own history, and its updates."""
    try:
        run = open_run(path)
    except RewarmError:
        return None
    before = pretraining_of(run, seen)
    if before is None:
        return None
    updates = np.arange(1, (run.plan.steps if step is None else step) + 1)
    stretch = (lr_curve(run.plan.schedule, updates), float(run.plan.tokens_per_step))
    return Pretraining((*before.stretches, stretch))


def pretraining_of(run: Run, seen: frozenset[Path] = frozenset()) -> Pretraining | None:
    """Return the history behind `init` of a run, or None where it is not known.

    Known are scratch, the built-in checkpoints, Pythia's revisions, and checkpoints of runs still on disk. What
    `init` meant when the run was begun is in its manifest. `seen` are the runs that led here.
    """
    config, begun = run.config, run.manifest.init
    base, _, revision = config.init.partition("@")
    folder = Path(begun.folder) if begun and begun.folder else None
    named = revision if folder is None or re.fullmatch(r"[0-9a-f]{40}", folder.name) else folder.name
    number = re.fullmatch(r"(?:step-?)?(\d+)", named)
    step = int(number[1]) if number else None
    if base == "scratch":
        return Pretraining()
    seen |= {run.path.resolve()}
    if folder is None and revision.startswith("loss"):
        return None  # which checkpoint that was, nobody wrote down
    if base == "builtin":
        return _of_run(UPSTREAM, step, seen)
    if re.fullmatch(r"EleutherAI/pythia-[0-9.]+[mb](-deduped)?", base):
        return _published(config, PYTHIA, step) if number or revision in ("", "main") else None
    # Where it was, or, where folders were moved, where `init` leads to by now.
    for place in (*([folder] if folder else []), Path(base).expanduser(), run.path.parent / base):
        other = checkpoint.run_of(place) or place
        if is_run(other) and other.resolve() not in seen:
            return _of_run(other, checkpoint.step_of(place) if other != place else step, seen)
    return None
