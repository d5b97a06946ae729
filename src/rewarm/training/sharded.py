"""Checkpoints of a model that is spread over several processes, by `torch.distributed.checkpoint`.

The weights come together in the first process, so that every checkpoint is a Hugging Face folder. The optimizer's
moments, twice as large, are written by all processes, each its own part, and are read by any number of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from rewarm.errors import CheckpointError
from rewarm.training import checkpoints, distributed
from rewarm.training.checkpoints import MOMENTS, Snapshot, read_state
from rewarm.training.state import TrainState

KEYS = ("exp_avg", "exp_avg_sq", "step")


def moments(state: TrainState) -> dict[str, Tensor]:
    """Return AdamW's moments by the names of their parameters, as they lie; zeros where no update was done yet."""
    found = {}
    for name, parameter in state.model.named_parameters():
        held = state.optimizer.state[parameter]
        for key in KEYS:
            if key not in held:
                like = torch.zeros((), device=state.sums.device) if key == "step" else torch.zeros_like(parameter)
                held[key] = like.detach()
            found[f"{name}.{key}"] = held[key]
    return found


def write_part(state: TrainState, parent: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write this process's part of the moments beside the checkpoints in `parent`, with all others.

    Return the folder, and the whole weights where this is the first process.
    """
    aside = parent / f".step-{state.step}.{MOMENTS}.tmp"
    save(moments(state), checkpoint_id=aside)
    weights = {}
    for name, value in state.model.state_dict().items():
        whole = distributed.whole(value).detach()
        if distributed.is_first():
            weights[name] = whole.cpu().clone()
    return aside, weights


def take_snapshot(state: TrainState, parent: Path) -> Snapshot:
    """Return a copy of the state for the first process to write, while the others call `write_part`."""
    aside, weights = write_part(state, parent)
    rest: dict[str, Any] = {key: value for key, value in state.state_dict().items() if key != "optimizer"}
    return Snapshot(state.step, state.tokens, weights, rest, aside)


def load_state(folder: Path, state: TrainState) -> None:
    """Load everything but the weights from a checkpoint, whoever wrote it and however many they were."""
    saved = read_state(folder)
    if "optimizer" not in saved or distributed.is_sharded(state.model):
        _load(folder, saved.pop("optimizer", None), state)
    state.load_state_dict(saved)


def load_moments(folder: Path | None, state: TrainState, init: str) -> None:
    """Load the optimizer's moments, and nothing else, from a checkpoint of rewarm's own. `init` is for the error."""
    if folder is None or not ((folder / MOMENTS).is_dir() or distributed.is_sharded(state.model)):
        checkpoints.load_moments(folder, state, init)
        return
    checkpoints.verify(folder)
    try:
        _load(folder, read_state(folder).get("optimizer"), state)
    except (CheckpointException, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"init_optimizer=true: the optimizer state of init={init} is that of another model"
        ) from error


def _load(folder: Path, saved: dict[str, Any] | None, state: TrainState) -> None:
    """Load moments into those of a state, which may be spread, out of a folder or, `saved`, whole ones."""
    held = moments(state)
    if saved is None:
        load(held, checkpoint_id=folder / MOMENTS)
        return
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
    for number, values in saved["state"].items():
        for key in KEYS:
            _copy(values[key], held[f"{ordered[number]}.{key}"])


def _copy(value: Tensor, to: Tensor) -> None:
    """Copy a whole tensor into one that may be spread."""
    if isinstance(to, DTensor):
        value = distribute_tensor(value.to(to.device), to.device_mesh, to.placements)
    to.copy_(value)
