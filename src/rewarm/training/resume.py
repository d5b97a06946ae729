"""Whether a run may go on in its folder: with the same config, or extended where the user asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from rewarm.checks import parse_tokens
from rewarm.config import Config, schema
from rewarm.errors import UserError
from rewarm.plan import Plan
from rewarm.rundir import RunFolder, config_text
from rewarm.schedules import lr

NEUTRAL = (
    *("run_dir", "dry_run", "tasks", "profile", "extend", "max_hours", "device", "tracker", "checkpoint"),
    *("experiment", "arm", "train.max_bad_steps", "train.parallel", "train.peak_tflops", "train.tokens_per_second"),
)
"""Keys and groups that may differ when a run goes on: they do not change its numbers."""
EXTENSIBLE = ("budget", "horizon")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one from dotted keys to values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that give other numbers, with their old and new values.

    A key that the old config does not have yet had its default. Tokens are compared as numbers.
    """
    defaults = OmegaConf.to_container(schema())
    assert isinstance(defaults, dict)
    before = {k: v for k, v in flat(defaults).items() if v != MISSING} | flat(old)  # type: ignore[arg-type]
    now = flat(new)

    def number(key: str, value: object) -> object:
        return parse_tokens(key, value) if key in EXTENSIBLE and value is not None else value

    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if number(key, before.get(key)) != number(key, now.get(key))
        and not any(key == name or key.startswith(f"{name}.") for name in NEUTRAL)
    }


def check_continues(folder: RunFolder, config: Config) -> bool:
    """Return whether `config` extends the run in `folder`.

    Raises `UserError` where it gives other numbers in any other way, or without being asked to extend.
    """
    found = differing(folder.read_config(), yaml.safe_load(config_text(config)))
    listed = "; ".join(f"{key} (was {old}, now {new})" for key, (old, new) in found.items())
    extends = bool(found) and all(key in EXTENSIBLE for key in found)
    if found and not (extends and config.extend):
        way_out = "undo" if not extends else "give extend=true to go on with it, or undo"
        raise UserError(
            f"run_dir={folder.path}: holds a run with another config; choose another run_dir, or {way_out}: {listed}"
        )
    return extends


def extensions(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the extensions of a run so far, as `make_plan` takes them."""
    found: list[dict[str, Any]] = folder.read_manifest().get("extensions", [])
    return found


def extend(folder: RunFolder, config: Config, step: int) -> None:
    """Note in the folder that after `step` the run goes on as `config` says.

    Killed anywhere in between, the same command does the rest.
    """
    manifest, before = folder.read_manifest(), folder.read_config()
    extension = {"after": step, "budget": before["budget"], "horizon": before["horizon"]}
    # A note of the same step is that of a command that was killed here, or of an extension that never ran.
    earlier = [e for e in manifest.get("extensions", []) if e["after"] < step]
    known = [e for e in manifest.get("extensions", []) if e["after"] == step]
    folder.write_manifest(manifest | {"extensions": earlier + (known or [extension])})
    folder.trim_metrics(step)
    folder.remove_summary()
    folder.write_config(config)


def describe_seam(plan: Plan, step: int) -> str:
    """Return what the learning rate does where a run is extended after `step`."""
    before, after, end = (lr(plan.schedule, s) for s in (step, step + 1, plan.steps))
    ratio = after / before if before else 1.0
    if abs(ratio - 1) < 0.05:
        does = "goes on without a jump"
    else:
        does = f"jumps {'up' if ratio > 1 else 'down'} by a factor of {max(ratio, 1 / ratio):.2f}"
    return (
        f"extends after step {step:,} to step {plan.steps:,}: the learning rate was {before:.3g} and {does}: "
        f"{after:.3g} at the next step, {end:.3g} at the last; horizon={plan.schedule.total_steps:,} steps"
    )


def check_same_data(manifest: Mapping[str, Any], fingerprint: Mapping[str, str], folder: RunFolder) -> None:
    """Raise `UserError` where the data is not what the run in `folder` was begun on, as its `manifest` has it."""
    before = manifest.get("data", fingerprint)
    if changed := sorted(k for k in before.keys() | fingerprint.keys() if before.get(k) != fingerprint.get(k)):
        raise UserError(
            f"run_dir={folder.path}: the data is not what the run was begun on ({', '.join(changed)} differs): "
            f"another version of the source, of a library that it comes from, or of the tokenizer; "
            f"put it back, or begin anew in another run_dir"
        )
