"""Checkpoints: a Hugging Face folder with the run's state beside it, written aside and renamed into place.

checkpoints/step-N/   model.safetensors, config.json, tokenizer.json …   what transformers loads
state.pt        optimizer, scaler, RNG, counts; loads with `weights_only=True`
average/        the running average of the weights, where there is one: a Hugging Face folder too
optimizer/      the optimizer instead, where several processes held its parts (torch.distributed.checkpoint)
manifest.json   step, tokens, the size and SHA-256 of every other file, and its own; written last

What has no manifest is not a checkpoint. A checkpoint that is not what its manifest says is never deleted: it is
set aside as `step-N.damaged-1`, and the one before it is used.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rewarm.data.tokenizers import FILES as TOKENIZER_FILES
from rewarm.errors import CheckpointError, first_line
from rewarm.runs.checkpoint import AVERAGE, MANIFEST, STATE, file_digest, folder_of, steps, verify
from rewarm.storage import fsync_dir, sealed, set_aside, storing, write_json
from rewarm.training.checkpoints.snapshot import MOMENTS, Snapshot

log = logging.getLogger(__name__)

FORMAT = 1
MOST_BYTES = 5_000_000_000
"""A larger model's weights are written as several files, with an index."""


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write(parent: Path, snapshot: Snapshot, model: nn.Module, tokenizer_folder: Path | None) -> Path:
    """Write `parent/step-N` and return it. Until the last rename there is no such checkpoint.

    Of `model` only the configuration is read, and how its weights are named in files. Raises `StorageError` where
    the disk is full.
    """
    target = folder_of(parent, snapshot.step)
    aside = parent / f".step-{snapshot.step}.tmp"
    try:
        with storing(target):
            _fill(aside, snapshot, model, tokenizer_folder)
            if target.exists():  # not one that was continued from: see `latest`
                log.warning("%s: kept as %s", target, set_aside(target))
            aside.rename(target)
            fsync_dir(parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # gives back what it took of a full disk
        raise
    return target


def _fill(aside: Path, snapshot: Snapshot, model: Any, tokenizer_folder: Path | None) -> None:  # noqa: ANN401 - a PreTrainedModel, which is untyped
    shutil.rmtree(aside, ignore_errors=True)
    for folder, weights in ((aside, snapshot.weights), (aside / AVERAGE, snapshot.average)):
        if not weights:
            continue
        folder.mkdir(parents=True)
        for name in TOKENIZER_FILES:
            if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, folder / name)
        try:
            # This names weights as published checkpoints do (GPT-NeoX's embed_out, one matrix for each expert), so
            # that older versions, converters and servers read them. transformers empties the dict.
            model.save_pretrained(folder, state_dict=dict(weights), max_shard_size=MOST_BYTES)
        except (SafetensorError, RuntimeError) as error:  # what their own code makes of an error of the disk
            raise OSError(None, first_line(error)) from error
    try:
        torch.save(snapshot.state, aside / STATE)
    except RuntimeError as error:
        raise OSError(None, first_line(error)) from error
    if snapshot.moments is not None:
        snapshot.moments.rename(aside / MOMENTS)
    for path in aside.rglob("*.safetensors"):
        shutil.copymode(aside / "config.json", path)  # safetensors lets only the owner read
    files = {}
    for path in sorted(path for path in aside.rglob("*") if path.is_file()):
        _fsync(path)
        files[path.relative_to(aside).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    manifest = {"format": FORMAT, "step": snapshot.step, "tokens": snapshot.tokens, "files": files}
    write_json(aside / MANIFEST, sealed(manifest))


def latest(parent: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None; damaged ones are set aside with a warning."""
    damaged = []
    for step in reversed(steps(parent)):
        folder = folder_of(parent, step)
        try:
            verify(folder)
        except CheckpointError as error:
            log.warning("%s; going back to the checkpoint before it", error)
            damaged.append(folder)
        else:
            break
    else:
        folder = None
    for path in damaged:
        log.warning("%s: kept as %s", path, set_aside(path))
    return folder


def clean(parent: Path) -> None:
    """Remove what a killed process left half written or half removed. Only for the owner of the run's lock."""
    for path in parent.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
