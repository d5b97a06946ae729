"""Points of curves and of sweeps: which of many to show, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spread_out(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices of `count` points, evenly spaced, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, min(count, most))).astype(np.int64))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats, by rising first value. Lower is better.

    A point beats another where it is at least as good in both values and better in one. Of equal points all stay.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=points.__getitem__):
        if not front or points[i][1] < points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
