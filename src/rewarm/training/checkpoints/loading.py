"""Takes a run's state back out of a checkpoint, whoever wrote it and however many processes they were."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from rewarm.errors import CheckpointError
from rewarm.runs.checkpoint import STATE, is_own
from rewarm.training.checkpoints import sharded
from rewarm.training.checkpoints.snapshot import MOMENTS
from rewarm.training.distributed import parallel
from rewarm.training.state import TrainState


def load(folder: Path, state: TrainState) -> None:
    """Load everything but the weights."""
    saved = _read(folder)
    if _is_sharded(folder, state):
        sharded.load_moments(folder / MOMENTS, saved.pop("optimizer", None), state)
    state.load_state_dict(saved)


def load_moments(folder: Path | None, state: TrainState, init: str) -> None:
    """Load the optimizer's moments, and nothing else, from a checkpoint of rewarm's own.

    The learning rate and all other hyperparameters stay those of the new run. `init` is for the error.
    """
    if folder is None or not is_own(folder):
        raise CheckpointError(
            f"init_optimizer=true: init={init} has no optimizer state; only rewarm's own checkpoints have it"
        )
    saved = _read(folder)
    try:
        if _is_sharded(folder, state):
            sharded.load_moments(folder / MOMENTS, saved.get("optimizer"), state)
        else:
            _load_whole(saved["optimizer"]["state"], state.optimizer)
    except (CheckpointException, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"init_optimizer=true: the optimizer state of init={init} is that of another model"
        ) from error


def _is_sharded(folder: Path, state: TrainState) -> bool:
    return (folder / MOMENTS).is_dir() or parallel.is_sharded(state.model)


def _load_whole(moments: dict[int, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load moments by the numbers of their parameters. Raises `ValueError` where these have other shapes."""
    current = optimizer.state_dict()
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    if shapes != [moments[i]["exp_avg"].shape if i in moments else None for i in range(len(shapes))]:
        raise ValueError("other shapes")
    optimizer.load_state_dict({"state": moments, "param_groups": current["param_groups"]})


def _read(folder: Path) -> dict[str, Any]:
    """Return what `state.pt` holds: everything but the weights, and moments that lie in a folder of their own."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{folder}/state.pt: holds other things than tensors and is not loaded") from error
    return state
