"""Checkpoints of a model that is sharded over several processes, by `torch.distributed.checkpoint`.

The weights come together in the first process, so that every checkpoint is a Hugging Face folder. The optimizer's
moments, twice as large, are written by all processes, each its own part, and are read by any number of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rewarm.training.checkpoints.snapshot import MOMENTS, Snapshot, average_of, weights_of
from rewarm.training.distributed import parallel, world
from rewarm.training.state import TrainState

KEYS = ("exp_avg", "exp_avg_sq", "step")


def moments(state: TrainState) -> dict[str, Tensor]:
    """Return AdamW's moments by the names of their parameters, as they lie; zeros where no update was done yet."""
    found = {}
    for name, parameter in state.model.named_parameters():
        its = state.optimizer.state[parameter]
        for key in KEYS:
            if key not in its:
                like = torch.zeros((), device=state.sums.device) if key == "step" else torch.zeros_like(parameter)
                its[key] = like.detach()
            found[f"{name}.{key}"] = its[key]
    return found


def take_snapshot(state: TrainState, parent: Path) -> Snapshot:
    """Return a snapshot of the state for the first process to write; all processes do this together.

    Each writes its part of the moments beside the checkpoints in `parent`. The whole weights are the first one's.
    """
    aside = parent / f".step-{state.step}.{MOMENTS}.tmp"
    save(moments(state), checkpoint_id=aside)
    weights, average = (_whole(found) for found in (weights_of(state.model), average_of(state)))
    rest: dict[str, Any] = {key: value for key, value in state.state_dict().items() if key != "optimizer"}
    return Snapshot(state.step, state.tokens, weights, rest, average, aside)


def _whole(sharded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return whole copies of tensors in the first process's host memory; the others get none."""
    found = {}
    for name, value in sharded.items():
        whole = parallel.full_tensor(value).detach()
        if world.is_first():
            found[name] = whole.cpu().clone()
    return found


def load_moments(folder: Path, whole: dict[str, Any] | None, state: TrainState) -> None:
    """Load moments into those of a state, sharded or not: `whole` ones, or those that lie in a folder by parts."""
    mine = moments(state)
    if whole is None:
        load(mine, checkpoint_id=folder)
        return
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
    for number, values in whole["state"].items():
        for key in KEYS:
            parallel.copy_whole(values[key], mine[f"{ordered[number]}.{key}"])
