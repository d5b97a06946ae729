"""Whether a run may go on in its folder: with the same config, or extended where the user asks for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import yaml

from rewarm.config.checks import from_dict
from rewarm.config.differences import EXTENSIBLE, differing
from rewarm.config.plan import Extension, Plan, logged
from rewarm.config.schema import SIDES, Config
from rewarm.errors import DataError, UserError
from rewarm.runs import checkpoint
from rewarm.runs.folder import CONFIG, MANIFEST, METRICS, RunFolder, config_text
from rewarm.runs.metrics import read_content, read_lines
from rewarm.runs.run import Run, describe_damage
from rewarm.schedules import lr

log = logging.getLogger(__name__)


def check_empty(folder: RunFolder) -> None:
    """Raise `DataError` where what a run left lies in a folder without its config: beginning anew would undo it."""
    if checkpoint.steps(folder.checkpoints) or read_content(folder.path / METRICS).strip():
        raise DataError(
            f"{folder.path / CONFIG}: is missing, and the folder holds what a run has made; put it back from a copy, "
            f"or choose another run_dir"
        )


def check_manifest(folder: RunFolder) -> None:
    """Raise `DataError` where a run that was begun has no manifest, which says what it depends on."""
    if not (folder.path / MANIFEST).exists():
        raise DataError(
            f"{folder.path / MANIFEST}: is missing; put it back from a copy, or begin anew in another run_dir"
        )


def check_continues(run: Run, config: Config) -> bool:
    """Return whether `config` extends the run.

    Raises `UserError` where it gives other numbers in any other way, or without being asked to extend.
    """
    saved_as = from_dict(yaml.safe_load(config_text(config)))  # without what is secret, as the folder has it
    found = differing(run.config, saved_as)
    listed = "; ".join(f"{key} (was {old}, now {new})" for key, (old, new) in found.items())
    extends = bool(found) and all(key in EXTENSIBLE for key in found)
    if found and not (extends and config.extend):
        way_out = "undo" if not extends else "give extend=true to go on with it, or undo"
        raise UserError(
            f"run_dir={run.path}: holds a run with another config; choose another run_dir, or {way_out}: {listed}"
        )
    return extends


def check_metrics(folder: RunFolder, run: Run, step: int, *, allowed: bool) -> None:
    """Raise `DataError` where lines up to `step`, from where the run goes on, are damaged or missing.

    With `allowed` it goes on without them, and what cannot be read is kept beside the file.
    """
    content = read_content(folder.path / METRICS)
    there: dict[int, Mapping[str, float]] = {}
    damaged = []
    for number, _, values in read_lines(content):
        if values is None:
            damaged.append(number)
        else:
            there[int(values["step"])] = values
    must = logged(run.config, run.manifest.extensions, range(step + 1))
    losses = {f"{side}/loss" for side in SIDES}
    lost = [at for at, scored in must.items() if at not in there or (scored and not losses <= there[at].keys())]
    said = describe_damage(folder.path / METRICS, damaged if lost else [], lost)
    if said is None:
        return
    if not allowed:
        raise DataError(f"{said}, or give allow_lost_metrics=true to go on without them")
    log.warning("%s", said)
    if damaged:
        folder.keep_metrics()


def extend(folder: RunFolder, run: Run, config: Config, step: int) -> list[Extension]:
    """Note in the folder that after `step` the run goes on as `config` says; return all its extensions.

    Killed anywhere in between, the same command does the rest.
    """
    before = run.manifest.extensions
    # A note of the same step is that of a command that was killed here, or of an extension that never ran.
    c = run.config
    known = [e for e in before if e.after == step] or [Extension(step, c.budget, c.horizon, c.stop)]
    extensions = [*(e for e in before if e.after < step), *known]
    folder.write_manifest(replace(run.manifest, extensions=extensions))
    folder.trim_metrics(step)
    folder.remove_summary()
    folder.write_config(config)
    return extensions


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


def check_same_data(before: Mapping[str, str], fingerprint: Mapping[str, str], folder: RunFolder) -> None:
    """Raise `UserError` where the data is not what the run in `folder` was begun on, as its manifest has it `before`.

    A manifest of an earlier version lacks the validation sets: what was not recorded cannot differ.
    """
    if changed := sorted(key for key in before if before[key] != fingerprint.get(key)):
        raise UserError(
            f"run_dir={folder.path}: the data is not what the run was begun on ({', '.join(changed)} "
            f"{'differs' if len(changed) == 1 else 'differ'}): another version of the source, of a library that it "
            f"comes from, or of the tokenizer; put it back, or begin anew in another run_dir"
        )
