"""Checkpoints on disk: which a run has, what one is, and whether it is whole.

checkpoints/step-N/   a Hugging Face folder with the run's state beside it
manifest.json         step, tokens, the size and SHA-256 of every other file, and its own; written last

What has no manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from rewarm.config.plan import Plan
from rewarm.config.schema import CheckpointConfig
from rewarm.errors import CheckpointError
from rewarm.storage import is_sealed

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.pt"
"""Optimizer, scaler, random state and counts, beside the weights."""
AVERAGE = "average"
"""The running average of the weights, where one is kept: a folder like that of the weights."""
SAMPLE = 1 << 20
"""Bytes at the start and at the end of a file by which weights are told apart that have no manifest."""


def folder_of(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step-{step}"


def step_of(folder: Path) -> int | None:
    """Return the step of a checkpoint's folder; None where it is not named like one."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def run_of(folder: Path) -> Path | None:
    """Return the folder of the run that a checkpoint's folder lies in; None where it lies in none."""
    inside = folder.parent.name == CHECKPOINTS and step_of(folder) is not None
    return folder.parent.parent if inside else None


def steps(checkpoints: Path) -> list[int]:
    """Return the steps that have a checkpoint with a manifest, in order."""
    if not checkpoints.is_dir():
        return []
    found = ((step_of(path), path) for path in checkpoints.iterdir())
    return sorted(step for step, path in found if step is not None and (path / MANIFEST).is_file())


def prune(checkpoints: Path, config: CheckpointConfig, plan: Plan, *, forks: bool = True) -> None:
    """Remove all checkpoints but those that `config` keeps, and with `forks` those that other runs begin from.

    What is saved for other runs alone does not count among the latest ones.
    """
    found, others = steps(checkpoints), plan.saved_for_others
    own = [step for step in found if step not in others]
    kept = set(own[-config.keep :] if config.keep else own) | set(plan.milestones) | set(plan.forks if forks else ())
    for step in found:
        if step not in kept and not (step in own and config.keep_every and step % config.keep_every == 0):
            # Renamed first: a kill in between must not leave half a checkpoint behind.
            aside = folder_of(checkpoints, step).rename(checkpoints / f".step-{step}.old.tmp")
            shutil.rmtree(aside)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises `CheckpointError` where it is not what was written."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: its manifest cannot be read") from error
    if not is_sealed(manifest):
        raise CheckpointError(f"{folder}: its manifest is not what was written (checksum differs)")
    return manifest


def is_own(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of rewarm's, be it damaged, and not any folder with a manifest.json."""
    return (folder / MANIFEST).is_file() and (run_of(folder) is not None or (folder / STATE).is_file())


def verify(folder: Path) -> None:
    """Raise `CheckpointError` unless every file is there and is what the manifest says."""
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / Path(name)
        if not path.resolve().is_relative_to(folder.resolve()):  # a manifest cannot point out of its folder
            raise CheckpointError(f"{folder}: its manifest names {name}, which lies outside")
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != expected["bytes"] or file_digest(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: is not what was written (checksum differs)")


def check_whole(folder: Path) -> None:
    """Raise `CheckpointError` where a checkpoint of rewarm's, or the average within one, is not what was written.

    Of other folders nothing is known that could be compared.
    """
    owner = folder.parent if folder.name == AVERAGE else folder
    if is_own(owner):
        verify(owner)


def identity(folder: Path) -> str:
    """Return what tells the weights in a folder from any others.

    A checkpoint's manifest holds the checksums of all files, so that its own checksum says it all. Of other folders
    names, sizes, and start and end of each file of weights or configuration count, which other weights do not share.
    """
    digest = hashlib.sha256()
    if is_own(folder):
        digest.update((folder / MANIFEST).read_bytes())
        return digest.hexdigest()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(size - SAMPLE, 0))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
