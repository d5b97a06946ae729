"""Learning-rate schedules: pure functions of a frozen spec.

Update number `t` (1, 2, …, `total_steps`) uses `lr(spec, t)`; `lr(spec, 0)` is the value before any update.
Every schedule first rises linearly from 0 to `max_lr` over `warmup_steps` updates. Past `total_steps`, the
horizon, each one stays at the value that it ended with.

Sources of the formulas:
    cosine        min + (max - min)/2 (1 + cos(pi (t - W)/(T - W)))
    cosine_neox   GPT-NeoX's `AnnealingLR`, as Gupta et al. 2023 (arXiv 2308.04014) ran it: the cosine decays
                  towards 0 over T (not T - W) steps and is cut off at the minimum
    wsd           Hu et al. 2024 (MiniCPM, arXiv 2404.06395): constant, then a short decay
    inverse_sqrt  Vaswani et al. 2017, shifted so that it starts at the maximum whatever the warm-up
    infinite_*    Ibrahim et al. 2024 (arXiv 2403.08763), section 3.3
    no_rewarm     Parmar et al. 2024 (arXiv 2407.07263): cosine from the LR at which pre-training ended
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class ScheduleSpec:
    """Everything that a learning-rate curve depends on. LRs are per update, lengths are in updates."""

    name: str
    max_lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    decay_fraction: float = 0.1
    """Share of the horizon that `wsd` decays over, at its end."""
    decay_shape: str = "linear"
    """Shape of `wsd`'s decay: linear, cosine or 1-sqrt."""
    cooldown_end: float = 0.6
    """Where the `infinite_*` schedules reach their constant LR, as a share of the horizon."""
    constant_end: float = 0.85
    """Where the `infinite_*` schedules leave their constant LR for the final anneal."""
    constant_lr_ratio: float = 0.55
    """The constant LR of the `infinite_*` schedules, as a share of the maximum."""
    alpha: float = 10.0
    """How steeply `infinite_inverse_sqrt` cools down."""
    timescale: float = 0.01
    """Share of the horizon over which `inverse_sqrt` falls to 1/sqrt(2) of the maximum."""
    earlier: ScheduleSpec | None = None
    """The curve up to update `seam`, where the run was extended there."""
    seam: int = 0
    """Last update of the `earlier` curve."""


def _progress(t: Curve, start: float, end: float) -> Curve:
    """Return how far `t` is from `start` to `end`, clipped to [0, 1]; 1 where the interval is empty."""
    if end <= start:
        return (t >= end).astype(np.float64)
    progress: Curve = np.clip((t - start) / (end - start), 0.0, 1.0)
    return progress


def _decay(shape: str, p: Curve) -> Curve:
    """Return the share of a decay that is left (1 to 0) after the share `p` of its length."""
    if shape == "linear":
        left: Curve = 1.0 - p
    elif shape == "cosine":
        left = 0.5 * (1.0 + np.cos(np.pi * p))
    else:
        assert shape == "1-sqrt", shape
        left = 1.0 - np.sqrt(p)
    return left


def _constant(s: ScheduleSpec, t: Curve) -> Curve:
    return np.full_like(t, s.max_lr)


def _linear(s: ScheduleSpec, t: Curve) -> Curve:
    return s.min_lr + (s.max_lr - s.min_lr) * _decay("linear", _progress(t, s.warmup_steps, s.total_steps))


def _cosine(s: ScheduleSpec, t: Curve) -> Curve:
    return s.min_lr + (s.max_lr - s.min_lr) * _decay("cosine", _progress(t, s.warmup_steps, s.total_steps))


def _cosine_neox(s: ScheduleSpec, t: Curve) -> Curve:
    since_warmup = np.clip(np.minimum(t, s.total_steps - s.warmup_steps) - s.warmup_steps, 0.0, None)
    curve: Curve = np.maximum(s.min_lr, s.max_lr * _decay("cosine", since_warmup / s.total_steps))
    return curve


def _wsd(s: ScheduleSpec, t: Curve) -> Curve:
    start = max(s.warmup_steps, s.total_steps - round(s.decay_fraction * s.total_steps))
    return s.min_lr + (s.max_lr - s.min_lr) * _decay(s.decay_shape, _progress(t, start, s.total_steps))


def _inverse_sqrt(s: ScheduleSpec, t: Curve) -> Curve:
    timescale = max(1, round(s.timescale * s.total_steps))
    since_warmup = np.clip(np.minimum(t, s.total_steps) - s.warmup_steps, 0.0, None)
    curve: Curve = np.maximum(s.min_lr, s.max_lr / np.sqrt(1.0 + since_warmup / timescale))
    return curve


def _infinite(s: ScheduleSpec, t: Curve, cooled: Callable[[Curve], Curve]) -> Curve:
    """Join cool-down, constant and anneal; `cooled` maps progress 0..1 to the share of the cool-down left."""
    constant_lr = s.constant_lr_ratio * s.max_lr
    cooldown_end = max(s.warmup_steps, round(s.cooldown_end * s.total_steps))
    constant_end = max(cooldown_end, round(s.constant_end * s.total_steps))
    cooldown = constant_lr + (s.max_lr - constant_lr) * cooled(_progress(t, s.warmup_steps, cooldown_end))
    # A geometric path cannot reach 0: a minimum of 0 is approached to a millionth of the constant LR.
    end_ratio = max(s.min_lr / constant_lr, 1e-6)
    anneal = constant_lr * end_ratio ** _progress(t, constant_end, s.total_steps)
    return np.where(t <= constant_end, cooldown, anneal)


def _infinite_cosine(s: ScheduleSpec, t: Curve) -> Curve:
    return _infinite(s, t, lambda p: _decay("cosine", p))


def _infinite_inverse_sqrt(s: ScheduleSpec, t: Curve) -> Curve:
    def h(x: Curve) -> Curve:
        return 1.0 / np.sqrt(1.0 + s.alpha * x) - 1.0

    return _infinite(s, t, lambda p: 1.0 - h(p) / h(np.ones(1)))


SCHEDULES: dict[str, Callable[[ScheduleSpec, Curve], Curve]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_neox": _cosine_neox,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
    "infinite_cosine": _infinite_cosine,
    "infinite_inverse_sqrt": _infinite_inverse_sqrt,
    "no_rewarm": _cosine,
}

SHAPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "wsd": ("decay_fraction", "decay_shape"),
    "inverse_sqrt": ("timescale",),
    "infinite_cosine": ("cooldown_end", "constant_end", "constant_lr_ratio"),
    "infinite_inverse_sqrt": ("cooldown_end", "constant_end", "constant_lr_ratio", "alpha"),
}
"""The parameters beyond max_lr, min_lr and lengths that a schedule reads; none for those not named."""

DECAY_SHAPES = ("linear", "cosine", "1-sqrt")


def lr_curve(spec: ScheduleSpec, steps: NDArray[np.int64] | Curve) -> Curve:
    """Return the learning rate of each of `steps`, in float64, of the same shape as `steps`."""
    t = np.asarray(steps, dtype=np.float64)
    curve: Curve = SCHEDULES[spec.name](spec, t)
    if spec.warmup_steps > 0:
        curve = np.where(t <= spec.warmup_steps, spec.max_lr * t / spec.warmup_steps, curve)
    if spec.earlier is not None:
        curve = np.where(t <= spec.seam, lr_curve(spec.earlier, t), curve)
    return curve


def lr(spec: ScheduleSpec, step: int) -> float:
    """Return the learning rate that update number `step` uses."""
    return float(lr_curve(spec, np.array([step]))[0])


def landmarks(spec: ScheduleSpec) -> dict[str, int]:
    """Return the steps at which the curve turns, by name, in order: `start`, …, `end`."""
    marks = {"start": 1, "warm-up end": spec.warmup_steps}
    if spec.name == "wsd":
        decay = round(spec.decay_fraction * spec.total_steps)
        marks["decay start"] = max(spec.warmup_steps, spec.total_steps - decay)
    if spec.name.startswith("infinite"):
        marks["cool-down end"] = max(spec.warmup_steps, round(spec.cooldown_end * spec.total_steps))
        marks["constant end"] = max(marks["cool-down end"], round(spec.constant_end * spec.total_steps))
    if spec.name == "cosine_neox":
        # Where max/2 (1 + cos(pi (t - W)/T)) crosses the minimum, to the nearest step.
        floor = spec.warmup_steps + spec.total_steps * np.arccos(2 * spec.min_lr / spec.max_lr - 1) / np.pi
        marks["floor"] = min(round(float(floor)), spec.total_steps)
    marks["end"] = spec.total_steps
    return {name: step for name, step in marks.items() if step > 0}
