"""Which runs begin alike: of two runs, the first updates that are the same numbers in both, and so need one training.

Batches are a function of the stores, the seed and the step; the learning rate is one of the step. Two runs are
therefore equal up to update s where their configs agree in all that is not the shape of the schedule, and where each
update up to s has the same learning rate, and the same lines in `metrics.jsonl`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewarm.config.differences import NEUTRAL, flat
from rewarm.config.plan import Plan
from rewarm.config.schema import Config
from rewarm.schedules import ScheduleSpec, lr_curve

SHAPING = (
    *("schedule", "max_lr", "min_lr_ratio", "warmup", "budget", "horizon", "stop"),
    *("evaluation.every", "evaluation.dense_every", "evaluation.dense_until"),
)
"""Keys and groups that act on an update by its learning rate alone, or by whether it is logged or scored."""


UPDATE = np.dtype([("lr", ">f8"), ("lines", "u1")])
"""What must agree of an update. Positive floats in big-endian order are sorted as their bytes are."""


@dataclass(frozen=True)
class Beginning:
    """The first updates of a run that are also those of another."""

    of: int
    """Position of the other run; it comes to that update before this one does."""
    steps: int


def differing_keys(one: Config, other: Config) -> list[str]:
    """Return the keys for whose difference two runs share nothing, in order."""
    first, second = dict(_fixed(one)), dict(_fixed(other))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def beginnings(
    runs: Sequence[tuple[Config, Plan]], beyond: Sequence[Hashable] | None = None
) -> list[Beginning | None]:
    """Return for each run the longest beginning that it shares with another, None where it is trained from its start.

    The runs and their beginnings are a forest: every run is trained after the one that it begins as. `beyond` holds
    for each run what else must agree, such as whether it will be compiled. Takes O(n log n) for n runs: among runs in
    the order of their curves, the longest beginning is shared by neighbours.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, (config, _) in enumerate(runs):
        groups[_fixed(config), beyond[number] if beyond else None].append(number)
    found: list[Beginning | None] = [None] * len(runs)
    for members in groups.values():
        if len(members) == 1:
            continue
        updates = {number: _updates(runs[number][1]) for number in members}
        # From high to low learning rates: of curves that decay, the one that does so last is the trunk of the others.
        ordered = sorted(members, key=lambda number: (updates[number], -number), reverse=True)
        # Each run begins as the nearest one before it that shares less with its own neighbour: the first of all that
        # share as much. Trees stay flat so, and arms side by side wait for few others.
        candidates = [(ordered[0], 0)]
        for before, number in pairwise(ordered):
            if not (shared := _shared(updates[before], updates[number])):
                candidates = [(number, 0)]
                continue
            while candidates[-1][1] >= shared:
                candidates.pop()
            found[number] = Beginning(candidates[-1][0], shared)
            candidates.append((number, shared))
    return found


def _fixed(config: Config) -> tuple[tuple[str, str], ...]:
    """Return everything of a config that must agree, by dotted key."""
    averages = bool(config.average.half_life)
    return tuple((key, repr(value)) for key, value in flat(asdict(config)).items() if _counts(key, averages=averages))


@cache
def _counts(key: str, *, averages: bool) -> bool:
    """Return whether a key must agree. How long a running average remembers is a share of the horizon."""
    if averages and key in ("budget", "horizon"):
        return True
    return not any(key == name or key.startswith(f"{name}.") for name in (*NEUTRAL, *SHAPING))


def _updates(plan: Plan) -> bytes:
    """Return of each update what must agree as 9 bytes: its learning rate, and what is logged after it."""
    found = np.zeros(plan.steps, dtype=UPDATE)
    found["lr"] = lr_curve(plan.schedule, _steps(plan.steps))
    # What is logged depends on the schedule by its warm-up only, so that arms have few kinds of it between them.
    bare = ScheduleSpec("constant", 1.0, 1.0, plan.schedule.warmup_steps, 0)
    found["lines"] = _lines(replace(plan, schedule=bare, save_every=1, milestones=(), forks=()))
    return found.tobytes()


@lru_cache(maxsize=2)
def _steps(count: int) -> NDArray[np.float64]:
    return np.arange(1.0, count + 1)


@lru_cache(maxsize=64)
def _lines(plan: Plan) -> NDArray[np.uint8]:
    """Return of each update whether it is logged, and whether both sides are scored after it, as two bits."""
    return np.array([plan.logs(s) + 2 * plan.evaluates(s) for s in range(1, plan.steps + 1)], dtype=np.uint8)


def _shared(one: bytes, other: bytes) -> int:
    """Return how many updates from the first on are the same."""
    length = min(len(one), len(other))
    unlike = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return (int(np.argmax(unlike)) if unlike.any() else length) // UPDATE.itemsize
