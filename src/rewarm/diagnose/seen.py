"""What a diagnosis looks at: one training, ours or another trainer's, in one form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from rewarm.config.schema import SIDES
from rewarm.diagnose.files import Files, look
from rewarm.forecast.csv_curves import IN_STEPS, read_csv
from rewarm.forecast.options import Logged
from rewarm.runs.metrics import Values
from rewarm.runs.run import Run
from rewarm.text import tokens_text

FEWEST = 5
"""Losses that a curve must have before noise can be told from a change."""


@dataclass(frozen=True)
class Series:
    """Losses in nats a token at rising steps."""

    steps: Values
    losses: Values

    @classmethod
    def none(cls) -> Series:
        """Return one without losses."""
        return cls(np.empty(0), np.empty(0))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def ends(self) -> str:
        """Return the first loss and the last in words."""
        return f"{self.losses[0]:.3f} -> {self.losses[-1]:.3f}"

    @property
    def rise(self) -> float:
        """Return how far the last loss lies above the first."""
        return float(self.losses[-1] - self.losses[0])

    @property
    def top(self) -> int:
        """Return the index of the highest loss."""
        return int(self.losses.argmax())

    @cached_property
    def noise(self) -> float:
        """Return the standard deviation of a loss about a smooth curve through its neighbours.

        It is taken from second differences, whose variance is six times that of independent noise (Gasser, Sroka and
        Jennen-Steinmetz 1986), by their median, so that jumps do not count. NaN with fewer than `FEWEST` losses.
        """
        if len(self) < FEWEST:
            return float("nan")
        later = self.losses[min(self.top, len(self) - FEWEST) :]  # without the climb to the peak
        return 1.4826 * float(np.median(np.abs(np.diff(later, 2)))) / 6**0.5


@dataclass(frozen=True)
class Seen:
    """One training as its folder or its file has it."""

    name: str
    lr: Values
    """Learning rate of each update that was made or planned: `lr[t - 1]` is update t's."""
    warmup_steps: int
    tokens_per_step: float
    """1 where only steps are known: then amounts are told in steps."""
    sides: dict[str, Series]
    """Validation losses by side; another trainer's names are kept."""
    train: Series
    """Losses of what was trained on, empty where they were not logged."""
    finished: bool = True
    """Whether it came to its end, as far as that can be known."""
    domains: dict[str, Values] = field(default_factory=dict)
    """Losses by domain of the data trained on, at the same steps; of another trainer those of its other sides."""
    run: Run | None = None
    """The run itself, where it is one of ours."""
    files: Files = field(default_factory=Files)
    """What the files around it tell."""

    @property
    def last_step(self) -> int:
        """Return the last step of which any loss is known."""
        ends = (series.steps[-1] for series in (*self.sides.values(), self.train) if len(series))
        return int(max(ends, default=0))

    @property
    def top_lr(self) -> float:
        """Return the highest LR so far."""
        return float(self.lr[: max(1, self.last_step)].max())

    @property
    def peak_lr(self) -> float | None:
        """Return the highest LR of the pre-training, where it is known."""
        return self.run.config.model.peak_lr if self.run is not None else None

    @property
    def cooler(self) -> float:
        """Return an LR to try where this one was too high."""
        return min(self.top_lr / 3, self.peak_lr or self.top_lr)

    @property
    def early(self) -> bool:
        """Return whether it is in its first half, where losses that rise say little."""
        return self.last_step < len(self.lr) / 2

    @property
    def scratch(self) -> bool:
        """Return whether it began from random weights, as far as that is known."""
        return self.run is not None and self.run.config.init == "scratch"

    @property
    def own(self) -> str | None:
        """Return the side whose data is trained on: the new data, or the only side there is."""
        if self.run is not None:
            return self.run.config.data.train
        return min(self.sides, key=lambda name: (name != "downstream", name == "upstream"), default=None)

    @property
    def shifted(self) -> bool:
        """Return whether a pretrained model is trained on new data."""
        return self.own != "upstream" and not self.scratch

    @property
    def learned(self) -> Series:
        """Return the validation losses of the data that is trained on; where there are none, what it trained with."""
        return self.sides.get(self.own or "", self.train)

    @property
    def own_text(self) -> str:
        """Return what `learned` is, in words."""
        return f"{self.own or 'training'} loss"

    def column(self, name: str) -> Values:
        """Return a column of a run's metrics, nothing of another trainer."""
        return self.run.metrics[name] if self.run is not None else np.empty(0)

    def amount(self, steps: float) -> str:
        """Return so many steps in words: tokens, where those are known."""
        if self.tokens_per_step == IN_STEPS:
            return f"{steps:,.0f} steps"
        return f"{tokens_text(steps * self.tokens_per_step)} tokens"


def of_run(run: Run) -> Seen:
    """Return what a run of ours shows."""
    sides = {side: Series(*run.loss(side, against="step")) for side in SIDES}
    own = run.config.data.train
    return Seen(
        name=run.name,
        lr=run.lr,
        warmup_steps=min(run.plan.schedule.warmup_steps, run.plan.steps),
        tokens_per_step=run.plan.tokens_per_step,
        sides={side: series for side, series in sides.items() if len(series)},
        train=Series(*run.metrics.curve("train/loss", "step")),
        finished=run.finished,
        domains={name: run.loss(own, name)[1] for name in run.domains(own)},
        run=run,
        files=look(run),
    )


def of_csv(path: Path, logged: Logged) -> Seen:
    """Return what another trainer's curve shows. Raises `UserError` for a file that cannot be read as one."""
    curve = read_csv(path, logged, keeps_train=True)
    sides = {name: Series(steps.astype(float), losses) for name, (steps, losses) in curve.losses.items()}
    return Seen(
        name=curve.name,
        lr=curve.trajectory.lr,
        warmup_steps=curve.trajectory.warmup_steps,
        tokens_per_step=curve.trajectory.tokens_per_step,
        train=sides.pop("train", Series.none()),
        sides=sides,
        domains={name: series.losses for name, series in sides.items() if name != "upstream"},
    )
