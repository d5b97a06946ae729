"""What runs have covered, so that a prediction outside of it can be told from one inside.

A training lies inside where runs whose LR curve has its shape enclose it in max LR, tokens, replay and warm-up. Two
LR curves have one shape where they lie close when each is divided by its maximum and drawn over its own length, and
where both have fallen equally far in the end. The beginning of a run counts like a run: its losses were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.history import Array
from rewarm.forecast.laws import SAME_SIZE

SLACK = 1.05
"""How far beyond a measured range still counts as inside it."""
SHAPE = 0.075
"""Mean distance of two LR curves, as a share of their maximum, up to which they have one shape."""
FALLEN = 0.1
"""Difference in how far two LRs have fallen, as a share of their maximum, up to which they are annealed alike."""
SHORTEST = 0.5
"""Tokens, as a share of those of the shortest run of a shape, down to which the shape counts as measured."""
FARTHEST_TOKENS, FARTHEST_LR = 3.0, 2.0
"""How many times the most tokens and the highest max LR of any run a training may have, for a number to be given."""
GRID = np.linspace(0, 1, 101)
TINY = 1e-12
"""An LR that stands for 0 where something is divided by it."""


def fallen(lr: Array) -> float:
    """Return by what share of its maximum an LR has fallen in the end: how far the training is annealed."""
    return float(1 - lr[-1] / max(lr.max(), TINY))


def unlike(a: Trajectory, b: Trajectory) -> float:
    """Return how far two recipes lie apart: LR curve over its own length, tokens, max LR, and replay."""
    shapes = float(np.abs(_shape(a.lr) - _shape(b.lr)).mean())
    tokens, highest = abs(np.log(a.tokens / b.tokens)), abs(np.log(a.lr.max() / b.lr.max()))
    return shapes + float(tokens + highest) + abs(float(np.log1p(a.replay / 0.05) - np.log1p(b.replay / 0.05)))


def _shape(lr: Array) -> Array:
    """Return an LR as a share of its maximum, at equally spaced shares of its length."""
    shape: Array = np.interp(GRID * (len(lr) - 1), np.arange(len(lr)), lr / max(lr.max(), TINY))
    return shape


def _alike(a: Trajectory, of_a: int, b: Trajectory, of_b: int) -> bool:
    """Return whether the LRs of the first updates of two trainings have one shape after their warm-ups."""
    one, other = (t.lr[max(0, min(t.warmup_steps, steps) - 1) : steps] for t, steps in ((a, of_a), (b, of_b)))
    close = float(np.abs(_shape(one) - _shape(other)).mean()) <= SHAPE
    return close and abs(fallen(one) - fallen(other)) <= FALLEN


@dataclass(frozen=True)
class Seen:
    """What some runs cover, and what is usual among them."""

    curves: tuple[Curve, ...]

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Seen:
        """Return what these curves cover."""
        return cls(tuple(curves))

    @property
    def tokens(self) -> float:
        """Return the tokens of the longest run, as far as it was measured."""
        return max(_tokens(curve) for curve in self.curves)

    @property
    def max_lrs(self) -> list[float]:
        """Return the max LR of each run."""
        return [float(curve.trajectory.lr[: curve.last_step].max()) for curve in self.curves]

    @property
    def max_lr(self) -> tuple[float, float]:
        """Return the lowest and the highest max LR."""
        return min(self.max_lrs), max(self.max_lrs)

    @property
    def usual_lr(self) -> float:
        """Return the max LR that most of the runs have, the highest of several."""
        return max(sorted(self.max_lrs, reverse=True), key=self.max_lrs.count)

    @property
    def replays(self) -> list[float]:
        """Return the shares of replay that were run, each once, rising."""
        return sorted({curve.trajectory.replay for curve in self.curves})

    @property
    def usual_replay(self) -> float:
        """Return the share of replay that most of the runs have, the lowest of several."""
        return max(self.replays, key=[curve.trajectory.replay for curve in self.curves].count)

    @property
    def warmup(self) -> float:
        """Return the share of the schedule that warms up, the middle one of the runs that do."""
        shares = [
            c.config.warmup if c.config else c.trajectory.warmup_steps / len(c.trajectory.lr) for c in self.curves
        ]
        return float(np.median([share for share in shares if share] or [0.0]))

    def enclose(self, max_lr: float, replay: float) -> bool:
        """Return whether runs lie all around a pair of max LR and replay: whether weights of theirs give the pair."""
        pairs = [(np.log(lr), c.trajectory.replay, 1.0) for lr, c in zip(self.max_lrs, self.curves, strict=True)]
        _, distance = nnls(np.transpose(pairs), np.array([np.log(max_lr), replay, 1.0]))
        return bool(distance <= np.log(SLACK))

    def of_shape(self, trajectory: Trajectory, steps: int | None = None) -> list[tuple[Curve, int]]:
        """Return the runs whose LR has the shape of the first `steps` updates of a training, or of all of them.

        With each comes how many of its updates have that shape: all that were measured, where the one is the other
        stretched or shrunk; else a beginning of as many tokens.
        """
        steps = len(trajectory.lr[:steps])
        tokens = steps * trajectory.tokens_per_step
        found = []
        for curve in self.curves:
            run, measured = curve.trajectory, curve.last_step
            beginning = min(measured, max(2, round(tokens / run.tokens_per_step)))
            if tokens >= SHORTEST * _tokens(curve) and _alike(trajectory, steps, run, measured):
                found.append((curve, measured))
            elif _alike(trajectory, steps, run, beginning):
                found.append((curve, beginning))
        return found

    def withheld(self, trajectory: Trajectory, steps: int | None = None) -> str | None:
        """Return why no number is given for the first `steps` updates of a training, or all; None where one is.

        So far from the runs no band would hold what it says, because nothing measured tells how wrong a law is there.
        """
        lr, tokens = trajectory.lr[:steps], len(trajectory.lr[:steps]) * trajectory.tokens_per_step
        most, (least_replay, most_replay) = self.max_lr[1], (self.replays[0], self.replays[-1])
        ends = max(fallen(curve.trajectory.lr[: curve.last_step]) for curve in self.curves)
        if fallen(lr) > ends + FALLEN:
            return f"its LR falls by {fallen(lr):.0%}, no run's by more than {ends:.0%}"
        if tokens > FARTHEST_TOKENS * SLACK * self.tokens:
            return f"{tokens / self.tokens:.2g} times the tokens seen"
        if lr.max() > FARTHEST_LR * SLACK * most:
            return f"max_lr {lr.max():g} is {lr.max() / most:.2g} times the highest that was run"
        if not least_replay - 1e-9 <= trajectory.replay <= most_replay + 1e-9:
            return f"replay {trajectory.replay:g} outside {least_replay:g}..{most_replay:g}"
        return None

    def beyond(self, trajectory: Trajectory, steps: int | None = None) -> tuple[str, ...]:
        """Return in what the first `steps` updates of a training, or all, lie outside, one phrase each."""
        lr = trajectory.lr[:steps]
        alike = self.of_shape(trajectory, steps)
        if not alike:
            return ("no run had an LR curve of this shape and length",)
        runs, found = Seen.of([curve for curve, _ in alike]), []
        low, high = runs.max_lr
        if not low / SLACK <= lr.max() <= high * SLACK:
            found.append(f"max_lr {lr.max():g} outside {low:g}..{high:g} of the runs of its shape")
        tokens = len(lr) * trajectory.tokens_per_step
        if tokens > runs.tokens * SLACK:
            found.append(f"{tokens / runs.tokens:.2g} times the tokens seen")
        least, most = runs.replays[0], runs.replays[-1]
        if not least - 1e-9 <= trajectory.replay <= most + 1e-9:
            found.append(f"replay {trajectory.replay:g} outside {least:g}..{most:g}")
        if not found and not runs.enclose(lr.max(), trajectory.replay):
            found.append(f"no runs of its shape enclose max_lr {lr.max():g} with replay {trajectory.replay:g}")
        shares = [curve.trajectory.warmup_steps / count for curve, count in alike]
        # Half and twice as long a warm-up is the same for the end of a run, and one or two updates are rounding.
        if not min(shares) / 2 * len(lr) - 2 <= trajectory.warmup_steps <= 2 * max(shares) * len(lr) + 2:
            share = trajectory.warmup_steps / len(lr)
            found.append(f"warm-up {share:.2g} outside {min(shares):.2g}..{max(shares):.2g}")
        return tuple(found)


def of_usual_start(curves: Sequence[Curve]) -> list[Curve]:
    """Return the runs of the largest model that start from the checkpoint that most of these start from.

    Others have another history.
    """
    largest = max((curve.trajectory.parameters or 0.0) for curve in curves)
    curves = [c for c in curves if (c.trajectory.parameters or 0.0) * (1 + SAME_SIZE) >= largest]
    starts = [curve.config.init if curve.config is not None else "" for curve in curves]
    usual = max(starts, key=starts.count)
    return [curve for curve, start in zip(curves, starts, strict=True) if start == usual]


def measured_start(curves: Sequence[Curve], side: str) -> float | None:
    """Return the loss of one side before any update, the mean of what runs from the usual start measured, or None."""
    starts = [curve.losses[side] for curve in of_usual_start(curves) if curve.trajectory.shifted]
    measured = [float(losses[0]) for steps, losses in starts if steps[0] == 0]
    return float(np.mean(measured)) if measured else None


def _tokens(curve: Curve) -> float:
    return curve.last_step * curve.trajectory.tokens_per_step
