"""What runs have covered, so that a prediction outside of it can be told from one inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.forecast.curves import Curve

SLACK = 1.05
"""How far beyond a measured range still counts as inside it."""


@dataclass(frozen=True)
class Seen:
    """What some runs cover, and what is usual among them."""

    max_lr: tuple[float, float]
    tokens: float
    replay: tuple[float, float]
    warmup: float
    """Share of the run that warms up, the middle one of the runs that do."""
    usual_lr: float
    usual_replay: float

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Seen:
        """Return what these curves cover; what is usual is what most of them have."""
        runs = [curve.trajectory for curve in curves]
        lrs = [float(t.lr.max()) for t in runs]
        replays = [t.replay for t in runs]
        return cls(
            max_lr=(min(lrs), max(lrs)),
            tokens=max(c.last_step * c.trajectory.tokens_per_step for c in curves),
            replay=(min(replays), max(replays)),
            warmup=float(np.median([t.warmup_steps / len(t.lr) for t in runs if t.warmup_steps] or [0.0])),
            usual_lr=max(sorted(lrs, reverse=True), key=lrs.count),
            usual_replay=max(sorted(replays), key=replays.count),
        )

    def beyond(self, max_lr: float, tokens: float, replay: float) -> tuple[str, ...]:
        """Return in what a training with these settings lies outside, one phrase each."""
        found = []
        low, high = self.max_lr
        if not low / SLACK <= max_lr <= high * SLACK:
            found.append(f"max_lr {max_lr:g} outside {low:g}..{high:g}")
        if tokens > self.tokens * SLACK:
            found.append(f"{tokens / self.tokens:.2g} times the tokens seen")
        if not self.replay[0] - 1e-9 <= replay <= self.replay[1] + 1e-9:
            found.append(f"replay {replay:g} outside {self.replay[0]:g}..{self.replay[1]:g}")
        return tuple(found)
