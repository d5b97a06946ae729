"""The LR of every update of another trainer's run: as its schedule is said, or read off the lines of its log."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator

from rewarm.config.compose import compose_config
from rewarm.config.plan import schedule_spec
from rewarm.errors import UserError
from rewarm.forecast.history import Array
from rewarm.forecast.options import Logged
from rewarm.schedules import ScheduleSpec, lr_curve

log = logging.getLogger(__name__)

Lines = tuple[Array, Array]
"""Steps, rising, and the LRs that were logged there."""
DIFFERENT = 0.02
"""Difference of an LR from its schedule, as a share of the maximum, from which on it is worth a word."""
WIDE_GAP = 0.2
"""Share of the run without any line from which on it is worth a word."""
MISSING_START = 1.5
"""First line's step, in usual distances of lines, from which on lines before it are missing."""
STRAIGHT = 0.02
"""Relative difference of the slopes in neighbouring gaps up to which the LR is taken to go straight."""
HOW = "say otherwise with warmup_steps=…, lr_curve=FILE, or `# schedule=…` above the columns"


def warmup_of(lr: Array) -> int:
    """Return how many updates an LR rises for at its start: 0 where it starts near its maximum."""
    top = int(np.argmax(lr >= 0.9999 * lr.max()))
    return top + 1 if lr[0] < 0.5 * lr.max() else 0


def between(steps: Array, lr: Array, at: Array) -> Array:
    """Return the LR at updates `at`, from lines at rising `steps`; constant before the first and after the last.

    A gap whose slope is that of a neighbour is taken as straight: a constant, a linear decay, a warm-up. Where the LR
    bends, a monotone cubic follows it (Fritsch and Butland 1984): a cosine, or a corner somewhere in the gap.
    """
    straight = np.interp(at, steps, lr)
    if len(steps) < 3:
        return straight
    slopes = np.diff(lr) / np.diff(steps)
    same = np.isclose(slopes[1:], slopes[:-1], rtol=STRAIGHT, atol=1e-9 * float(np.abs(slopes).max()))
    bends = ~(np.append(same, False) | np.insert(same, 0, False))
    gap = np.clip(np.searchsorted(steps, at) - 1, 0, len(slopes) - 1)
    smooth = PchipInterpolator(steps, lr)(np.clip(at, steps[0], steps[-1]))
    curve: Array = np.where(bends[gap], smooth, straight)
    return curve


def _of_schedule(path: Path, logged: Logged, lines: Lines | None, count: int) -> ScheduleSpec:
    """Return the schedule that was said; what was left open is assumed, and that said in one line."""
    top = [f"max_lr={float(lines[1].max())!r}"] if lines else []
    try:
        config = compose_config(*top, *logged.schedule)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    spec = schedule_spec(config, count if logged.total_steps is None else logged.total_steps)
    if logged.warmup_steps is not None:
        spec = replace(spec, warmup_steps=logged.warmup_steps)
    keys = {word.split("=")[0] for word in logged.schedule}
    assumed = {
        f"warmup_steps={spec.warmup_steps}": logged.warmup_steps is None and "warmup" not in keys,
        f"min_lr_ratio={config.min_lr_ratio:g}": "min_lr_ratio" not in keys,
        f"total_steps={spec.total_steps}": logged.total_steps is None,
        f"max_lr={spec.max_lr:g}": "max_lr" not in keys,
    }
    if any(assumed.values()):
        log.warning("%s: %s is taken with %s", path, logged.schedule[0], " ".join(k for k, v in assumed.items() if v))
    return spec


def _compare(path: Path, logged: Logged, curve: Array, lines: Lines) -> None:
    """Say where the lines of the log contradict the schedule."""
    steps, lr = (values[lines[0] >= 1] for values in lines)
    errors = np.abs(curve[steps.round().astype(int) - 1] - lr) / max(lr.max(initial=0), 1e-12)
    if errors.max(initial=0) > DIFFERENT:
        worst = int(errors.argmax())
        log.warning("%s: its lr differs from %s by %.0f %% of the maximum at step %.6g; the schedule counts",
                    path, logged.schedule[0], 100 * errors[worst], steps[worst])  # fmt: skip


def lr_of_updates(path: Path, logged: Logged, lines: Lines | None, count: int) -> tuple[Array, int]:
    """Return the LR of updates 1 to `count`, and how many of them warm up.

    `lines` are the steps, rising, and the LRs that were logged there. What has to be assumed is said in one line.
    """
    updates = np.arange(1, count + 1, dtype=float)
    if logged.schedule:
        spec = _of_schedule(path, logged, lines, count)
        curve = lr_curve(spec, updates)
        if lines:
            _compare(path, logged, curve, lines)
        return curve, min(spec.warmup_steps, count)
    assert lines is not None
    steps, lr = lines
    assumed = []
    warmup = logged.warmup_steps
    if warmup is None:
        usual = float(np.median(np.diff(steps))) if len(steps) > 1 else np.inf
        missing, rising = steps[0] > MISSING_START * usual, len(lr) > 1 and lr[0] < 0.98 * lr[1]
        warmup = round(steps[0]) if steps[0] > 1 and (missing or rising) else 0
        if missing:
            assumed.append(f"before its first line, at update {steps[0]:.6g}, to rise from 0 in a straight line")
    kept = steps >= warmup
    if not kept.any():
        raise UserError(f"{path}: warmup_steps={warmup}: is beyond the last line with an lr, at step {steps[-1]:.6g}")
    gaps = np.diff(steps[kept])
    if len(gaps) and gaps.max() > WIDE_GAP * count:
        at = int(gaps.argmax())
        a, b = steps[kept][at : at + 2]
        assumed.append(f"to go from line to line between updates {a:.6g} and {b:.6g}")
    if assumed:
        log.warning("%s: the LR is taken %s (%s)", path, " and ".join(assumed), HOW)
    curve = between(steps[kept], lr[kept], updates)
    if warmup:
        curve[:warmup] = curve[warmup - 1] * updates[:warmup] / warmup
    return curve, warmup_of(curve) if logged.warmup_steps is None else warmup
