"""What the laws read off a trajectory: LR areas and LR drops, remembered, at the steps where a loss is wanted.

Units are chosen so that fits are well conditioned: areas (S1, LR times tokens) in multiples of `Units.area`, LRs in
multiples of `Units.lr`, and the drop of Tissue et al. is `(1 - lambda) S2`, an LR between none of it forgotten
and all of it. `laws.paper_units` undoes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import lfilter

from rewarm.forecast.curves import Trajectory
from rewarm.forecast.history import Array, Steps

BLOCKS = 48
"""Pieces that the changes of an LR curve are gathered into for the multi-power law."""
MEMORIES_PER_E = 2.0
"""Memory lengths tabulated per factor e; a cubic spline in log length lies between them."""
SHORTEST_MEMORY = 2.0
"""In steps."""


@dataclass(frozen=True)
class Units:
    """Scales shared by all trajectories of one forecast."""

    lr: float
    area: float
    """LR times tokens."""
    memories: Array
    """Memory lengths, in tokens, at which remembered drops are tabulated."""


def units_of(trajectories: Sequence[Trajectory], memory: float | None = None) -> Units:
    """Return units in which areas and LRs of these trajectories are about 1; `memory`, in tokens, is tabulated."""
    shortest = SHORTEST_MEMORY * min(t.tokens_per_step for t in trajectories)
    longest = max(t.tokens for t in trajectories)
    if memory is not None:
        shortest, longest = min(shortest, memory), max(longest, memory)
    count = max(4, round(MEMORIES_PER_E * np.log(longest / shortest)))
    return Units(
        lr=max(float(t.lr.max()) for t in trajectories),
        area=max(float(t.lr.sum()) * t.tokens_per_step for t in trajectories),
        memories=np.geomspace(shortest, longest, count),
    )


def remembered_drop(lr: Array, start_lr: float, memory: float, steps: Steps) -> Array:
    """Return `(1 - lambda) S2` after each of `steps`, with `lambda = exp(-1/memory)` and `memory` in steps.

    S2 sums, over updates i and all changes k <= i, `(eta_(k-1) - eta_k) lambda^(i-k)` (Tissue et al. 2024,
    arXiv 2408.11029). Summed over i first it is a geometric series, so one linear filter over the changes gives it:
    O(len(lr)) whatever `lambda`. Step 0 gives 0.
    """
    decay = np.exp(-1.0 / memory)
    changes = -np.diff(lr, prepend=start_lr)
    forgotten = cast("Array", lfilter([decay], [1.0, -decay], changes))
    drop = np.concatenate([[0.0], start_lr - lr - forgotten])
    return drop[steps]


@dataclass(frozen=True)
class Features:
    """What the laws need at n points, of one trajectory or of several behind each other."""

    area: Array
    """(n,) S1 since the run began."""
    area_before: Array
    """(n,) S1 of the pre-training; NaN where it is not known."""
    drop_before: Array
    """(m, n) remembered drops of the pre-training, one row for each memory; NaN where not known."""
    drop: Array
    """(m, n) remembered drops since the run began, one row for each memory."""
    block_drop: Array
    """(k, n) drops of the LR in each block."""
    block_lr: Array
    """(k, n) LR of each block."""
    block_area: Array
    """(k, n) area since each block, 0 for one that has not come yet."""
    shifted: Array
    """(n,) 1 where the data differ from pre-training's, else 0."""
    replay: Array
    """(n,)"""
    parameters: Array
    """(n,) of the model; NaN where they are not known."""

    def __len__(self) -> int:
        return len(self.area)


def _blocks(lr: Array, start_lr: float, area: Array) -> tuple[Array, Array, Array]:
    """Return drop, LR and area before it of each of `BLOCKS` equal stretches of the way that the LR travels.

    A jump is such a way too: it passes all LRs between its ends, as the shortest of warm-ups does.
    """
    path = np.concatenate([[start_lr], lr])
    travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(path)))])
    ends = np.linspace(0, travelled[-1], BLOCKS + 1)
    middles = 0.5 * (ends[:-1] + ends[1:])
    before = np.concatenate([[0.0], area[:-1]])
    return (
        -np.diff(np.interp(ends, travelled, path)),
        np.interp(middles, travelled, path),
        np.interp(middles, travelled, before),
    )


def features(trajectory: Trajectory, steps: Steps, units: Units) -> Features:
    """Return the features of `trajectory` after each of `steps` updates (0: before the first)."""
    t, n = trajectory, len(steps)
    memories = units.memories / t.tokens_per_step
    area = np.concatenate([[0.0], np.cumsum(t.lr)]) * (t.tokens_per_step / units.area)
    area_before, drop_before = np.nan, np.full(len(memories), np.nan)
    if t.pretraining is not None:
        area_before, drop_before = 0.0, np.zeros(len(memories))
        previous = 0.0
        for lr, tokens_per_step in t.pretraining.stretches:
            area_before += float(lr.sum()) * tokens_per_step / units.area
            end = np.array([len(lr)])
            for i, memory in enumerate(units.memories / tokens_per_step):
                drop_before[i] += remembered_drop(lr, previous, memory, end)[0] / units.lr
            previous = float(lr[-1])
    block_drop, block_lr, block_start = _blocks(t.lr, t.start_lr, area)
    return Features(
        area=area[steps],
        area_before=np.full(n, area_before),
        drop_before=np.repeat(drop_before[:, None], n, axis=1),
        drop=np.stack([remembered_drop(t.lr, t.start_lr, memory, steps) for memory in memories]) / units.lr,
        block_drop=np.repeat(block_drop[:, None] / units.lr, n, axis=1),
        block_lr=np.repeat(np.maximum(block_lr / units.lr, 1e-3)[:, None], n, axis=1),
        block_area=np.clip(area[steps][None, :] - block_start[:, None], 0.0, None),
        shifted=np.full(n, float(t.shifted)),
        replay=np.full(n, t.replay),
        parameters=np.full(n, np.nan if t.parameters is None else t.parameters),
    )


def stack(parts: Sequence[Features]) -> Features:
    """Return the points of all `parts`, in order."""
    return Features(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(Features)}
    )


class Remembered:
    """A table of remembered drops, (memories, n), as a smooth function of the memory."""

    def __init__(self, units: Units, table: Array) -> None:
        self._spline = CubicSpline(np.log(units.memories), table)
        self._slope = self._spline.derivative()

    def __call__(self, log_memory: float) -> tuple[Array, Array]:
        """Return the drops, and their derivative by the log of the memory."""
        return self._spline(log_memory), self._slope(log_memory)
