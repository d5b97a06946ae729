"""Checkpoints: a Hugging Face folder with the run's state beside it, written aside and renamed into place.

checkpoints/step-N/   model.safetensors, config.json, tokenizer.json …   what transformers loads
state.pt        optimizer, scaler, RNG, counts; loads with `weights_only=True`
manifest.json   step, tokens, and the size and SHA-256 of every other file, written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from rewarm.cache import fsync_dir, write_json
from rewarm.errors import CheckpointError
from rewarm.training.state import TrainState

log = logging.getLogger(__name__)

FORMAT = 1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save(parent: Path, state: TrainState, tokenizer_folder: Path | None) -> Path:
    """Write `parent/step-N` and return it. Until the last rename there is no such checkpoint."""
    target = parent / f"step-{state.step}"
    aside = parent / f".step-{state.step}.{os.getpid()}.tmp"
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    model: Any = state.model
    model.save_pretrained(aside)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, aside / name)
    torch.save(state.state_dict(), aside / "state.pt")
    files = {}
    for path in sorted(aside.iterdir()):
        _fsync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_json(
        aside / "manifest.json",
        {"format": FORMAT, "step": state.step, "tokens": state.tokens, "files": files},
    )
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    fsync_dir(parent)
    return target


def steps(parent: Path) -> list[int]:
    """Return the steps that have a checkpoint with a manifest, in order."""
    if not parent.is_dir():
        return []
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in parent.iterdir())
    return sorted(int(match[1]) for match, path in matches if match and (path / "manifest.json").is_file())


def verify(folder: Path) -> None:
    """Raise `CheckpointError` unless every file is there and is what the manifest says."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: its manifest cannot be read") from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: is not what was written (checksum differs)")


def latest(parent: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None; a damaged one is passed over with a warning."""
    for step in reversed(steps(parent)):
        folder = parent / f"step-{step}"
        try:
            verify(folder)
        except CheckpointError as error:
            log.warning("%s; going back to the checkpoint before it", error)
            continue
        return folder
    return None


def load_state(folder: Path, state: TrainState) -> None:
    """Load everything but the weights from a checkpoint."""
    state.load_state_dict(torch.load(folder / "state.pt", map_location="cpu", weights_only=True))


def prune(parent: Path, keep: int, milestones: tuple[int, ...]) -> None:
    """Remove all checkpoints but the last `keep` (0: keep all) and the milestones."""
    if keep == 0:
        return
    for step in steps(parent)[:-keep]:
        if step not in milestones:
            shutil.rmtree(parent / f"step-{step}")
