"""What of two configs differs, and whether that gives other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config

NEUTRAL = (
    *("run_dir", "dry_run", "tasks", "profile", "extend", "allow_lost_metrics", "max_hours", "device", "tracker"),
    *("checkpoint", "experiment", "arm", "sweep", "fork", "train.max_bad_steps", "train.parallel"),
    *("train.recompute", "train.peak_tflops", "train.tokens_per_second", "train.micro_batch_size"),
)
"""Keys and groups that may differ when a run goes on: they do not change its numbers, or `exactness` says so."""
KEPT = ("train.threads",)
"""Keys that, not given, keep what the run was begun with."""
EXTENSIBLE = ("budget", "horizon", "stop")
PLANNED = (*EXTENSIBLE, "evaluation.every")
"""Keys that count by what they mean together: a budget under its horizon is the horizon as a budget, and a stop."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one from dotted keys to values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that give other numbers, with their old and new values."""
    before, now = flat(asdict(old)), flat(asdict(new))
    as_before = replace(
        new,
        **{key: getattr(old, key) for key in EXTENSIBLE},
        evaluation=replace(new.evaluation, every=old.evaluation.every),
    )
    passed_over = NEUTRAL if make_plan(as_before) != make_plan(new) else (*NEUTRAL, *PLANNED)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not (key in KEPT and now.get(key) is None)
        and not any(key == name or key.startswith(f"{name}.") for name in passed_over)
    }
