"""A run's state at one step, as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewarm.training.state import TrainState

MOMENTS = "optimizer"
"""Folder within a checkpoint that several processes wrote, each its own part; then `state.pt` has no optimizer."""


@dataclass(frozen=True)
class Snapshot:
    """A run's state at a step: as it lies, or a copy of it in host memory."""

    step: int
    tokens: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)
    """The running average of the weights, by the same names; empty where there is none."""
    moments: Path | None = None
    """Folder in which the optimizer's moments lie already, to be moved into the checkpoint."""

    @staticmethod
    def view(state: TrainState) -> Snapshot:
        """Return a run's state without copying it: its weights and moments change with the next update."""
        return Snapshot(state.step, state.tokens, weights_of(state.model), state.state_dict(), average_of(state))

    def copy(self, over: Snapshot | None = None) -> Snapshot:
        """Return a copy in host memory: in that of the snapshot `over`, where there is one.

        From a GPU the copies are only enqueued; whoever reads them must wait for the device first.
        """
        copies: list[tuple[Tensor, Tensor]] = []
        weights = _in_host(self.weights, over and over.weights, copies)
        rest = _in_host(self.state, over and over.state, copies)
        average = _in_host(self.average, over and over.average, copies)
        # One call for all: hundreds of small copies would each wait for torch's threads, and for Python's lock.
        on_gpu = any(of.is_cuda for _, of in copies)
        torch._foreach_copy_([to for to, _ in copies], [of for _, of in copies], non_blocking=on_gpu)
        return Snapshot(self.step, self.tokens, weights, rest, average)


def weights_of(model: Any) -> dict[str, Tensor]:  # noqa: ANN401 - a PreTrainedModel, which is untyped
    """Return the weights of a model by name, as they lie. Of tied weights only the first name is there.

    transformers ties them again when it loads the model, so a second name would only take room.
    """
    return {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}


def average_of(state: TrainState) -> dict[str, Tensor]:
    """Return what the weights of a state are on average, by name, as they lie; nothing where no average is kept."""
    if state.average is None:
        return {}
    means = {id(weight): mean for weight, mean in zip(state.average.weights, state.average.means, strict=True)}
    names = {name: means.get(id(p)) for name, p in state.model.named_parameters(remove_duplicate=False)}
    found = {name: (value, names.get(name)) for name, value in weights_of(state.model).items()}
    return {name: value if mean is None else mean for name, (value, mean) in found.items()}


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
