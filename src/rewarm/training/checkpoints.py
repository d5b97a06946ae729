"""Checkpoints: a Hugging Face folder with the run's state beside it, written aside and renamed into place.

checkpoints/step-N/   model.safetensors, config.json, tokenizer.json …   what transformers loads
state.pt        optimizer, scaler, RNG, counts; loads with `weights_only=True`
optimizer/      the optimizer instead, where several processes held its parts (torch.distributed.checkpoint)
manifest.json   step, tokens, the size and SHA-256 of every other file, and its own; written last

What has no manifest is not a checkpoint. A checkpoint that is not what its manifest says is never deleted: it is
set aside as `step-N.damaged`, and the one before it is used.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rewarm.cache import fsync_dir, storing, write_json
from rewarm.errors import CheckpointError, first_line
from rewarm.training.state import TrainState

log = logging.getLogger(__name__)

FORMAT = 1
MOMENTS = "optimizer"
"""Folder within a checkpoint that several processes wrote, each its own part; then `state.pt` has no optimizer."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Snapshot:
    """A run's state at a step: as it lies, or a copy of it in host memory."""

    step: int
    tokens: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    moments: Path | None = None
    """Folder in which the optimizer's moments lie already, to be moved into the checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        return next(iter(self.weights.values())).dtype


def refer(state: TrainState) -> Snapshot:
    """Return a run's state without copying it: its weights and moments change with the next update."""
    return Snapshot(state.step, state.tokens, dict(state.model.state_dict()), state.state_dict())


def copied(live: Snapshot, over: Snapshot | None = None) -> Snapshot:
    """Copy a state into host memory: that of the snapshot `over`, where there is one.

    From a GPU the copies are only enqueued; whoever reads them must wait for the device first.
    """
    copies: list[tuple[Tensor, Tensor]] = []
    weights = _in_host(live.weights, over and over.weights, copies)
    rest = _in_host(live.state, over and over.state, copies)
    # One call for all: hundreds of small copies would each wait for torch's threads, and for Python's lock.
    on_gpu = any(of.is_cuda for _, of in copies)
    torch._foreach_copy_([to for to, _ in copies], [of for _, of in copies], non_blocking=on_gpu)
    return Snapshot(live.step, live.tokens, weights, rest)


def _in_host(value: Any, over: Any, copies: list[tuple[Tensor, Tensor]]) -> Any:  # noqa: ANN401 - any nesting
    """Return `value` with each tensor replaced by room for it in host memory, that of `over` where it fits.

    What is to be copied, and where to, is added to `copies`.
    """
    if isinstance(value, Tensor):
        if not isinstance(over, Tensor) or (over.shape, over.dtype) != (value.shape, value.dtype):
            over = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        copies.append((over, value.detach()))
        return over
    if isinstance(value, dict):
        known = over if isinstance(over, dict) else {}
        return {key: _in_host(item, known.get(key), copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        room = over if isinstance(over, list | tuple) and len(over) == len(value) else [None] * len(value)
        return type(value)(_in_host(item, known, copies) for item, known in zip(value, room, strict=True))
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """Return the checksum that a manifest holds of itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write(parent: Path, snapshot: Snapshot, model: nn.Module, tokenizer_folder: Path | None) -> Path:
    """Write `parent/step-N` and return it. Until the last rename there is no such checkpoint.

    Of `model` only the configuration is read. Raises `StorageError` where the disk is full.
    """
    target = parent / f"step-{snapshot.step}"
    aside = parent / f".step-{snapshot.step}.tmp"
    try:
        with storing(target):
            _fill(aside, snapshot, model, tokenizer_folder)
            if target.exists():  # not one that was continued from: see `latest`
                _set_aside(target)
            aside.rename(target)
            fsync_dir(parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # gives back what it took of a full disk
        raise
    return target


def _fill(aside: Path, snapshot: Snapshot, model: Any, tokenizer_folder: Path | None) -> None:  # noqa: ANN401 - a PreTrainedModel, which is untyped
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], snapshot.dtype
    config.save_pretrained(aside)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(aside)
    for name in TOKENIZER_FILES:
        if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, aside / name)
    try:
        save_file(snapshot.weights, aside / "model.safetensors", metadata={"format": "pt"})
        torch.save(snapshot.state, aside / "state.pt")
    except (SafetensorError, RuntimeError) as error:  # what their own code makes of an error of the disk
        raise OSError(None, first_line(error)) from error
    if snapshot.moments is not None:
        snapshot.moments.rename(aside / MOMENTS)
    # safetensors lets only the owner read; a checkpoint is as readable as the rest of the run.
    shutil.copymode(aside / "config.json", aside / "model.safetensors")
    files = {}
    for path in sorted(path for path in aside.rglob("*") if path.is_file()):
        _fsync(path)
        files[path.relative_to(aside).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"format": FORMAT, "step": snapshot.step, "tokens": snapshot.tokens, "files": files}
    write_json(aside / "manifest.json", manifest | {"sha256": _digest(manifest)})


def steps(parent: Path) -> list[int]:
    """Return the steps that have a checkpoint with a manifest, in order."""
    if not parent.is_dir():
        return []
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in parent.iterdir())
    return sorted(int(match[1]) for match, path in matches if match and (path / "manifest.json").is_file())


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def verify(folder: Path) -> None:
    """Raise `CheckpointError` unless every file is there and is what the manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        digest = manifest.pop("sha256")
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its manifest cannot be read") from error
    if _digest(manifest) != digest:
        raise CheckpointError(f"{folder}: its manifest is not what was written (checksum differs)")
    for name, expected in files:
        path = folder / Path(name)
        if not path.resolve().is_relative_to(folder.resolve()):  # a manifest cannot point out of its folder
            raise CheckpointError(f"{folder}: its manifest names {name}, which lies outside")
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: is not what was written (checksum differs)")


def latest(parent: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None; damaged ones are set aside with a warning."""
    damaged = []
    found = None
    for step in reversed(steps(parent)):
        folder = parent / f"step-{step}"
        try:
            verify(folder)
        except CheckpointError as error:
            log.warning("%s; going back to the checkpoint before it", error)
            damaged.append(folder)
            continue
        found = folder
        break
    for folder in damaged:
        _set_aside(folder)
    return found


def _set_aside(folder: Path) -> None:
    """Rename a folder that is not a whole checkpoint, so that it stays without being taken for one."""
    number = 1
    while (name := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    folder.rename(name)
    log.warning("%s: kept as %s", folder, name.name)


def read_state(folder: Path) -> dict[str, Any]:
    """Return everything that a checkpoint holds beside the weights and what is in its folder of moments."""
    try:
        state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{folder}/state.pt: holds other things than tensors and is not loaded") from error
    return state


def load_moments(folder: Path | None, state: TrainState, init: str) -> None:
    """Load the optimizer's moments, and nothing else, from a checkpoint of rewarm's own.

    The learning rate and all other hyperparameters stay those of the new run. `init` is for the error.
    """
    if folder is None or not (folder / "state.pt").is_file():
        raise CheckpointError(
            f"init_optimizer=true: init={init} has no optimizer state; only rewarm's own checkpoints have it"
        )
    verify(folder)
    saved = read_state(folder)["optimizer"]
    current = state.optimizer.state_dict()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    shapes = [saved["state"][i]["exp_avg"].shape if i in saved["state"] else None for i in range(len(parameters))]
    if shapes != [p.shape for p in parameters]:
        raise CheckpointError(f"init_optimizer=true: the optimizer state of init={init} is that of another model")
    state.optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})


def clean(parent: Path) -> None:
    """Remove what a killed process left half written or half removed. Only for the owner of the run's lock."""
    for path in parent.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def prune(parent: Path, keep: int, keep_every: int | None, milestones: Collection[int]) -> None:
    """Remove all checkpoints but the last `keep` (0: keep all), multiples of `keep_every`, and milestones."""
    if keep == 0:
        return
    for step in steps(parent)[:-keep]:
        if step not in milestones and not (keep_every and step % keep_every == 0):
            # Renamed first: a kill in between must not leave half a checkpoint behind.
            aside = (parent / f"step-{step}").rename(parent / f".step-{step}.old.tmp")
            shutil.rmtree(aside)
