"""Our learning rates in a training loop of somebody's own."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from rewarm.schedules import ScheduleSpec, lr


class LRScheduler(torch.optim.lr_scheduler.LRScheduler):
    """Gives update t the learning rate `lr(spec, t)`, counted from 1, where `step` is called after each update.

    A parameter group whose LR is not that of the first one keeps its ratio to it. State is saved and loaded as with
    any scheduler of torch; `last_epoch` is the number of updates that were done.
    """

    def __init__(self, optimizer: Optimizer, spec: ScheduleSpec, last_epoch: int = -1) -> None:
        self.spec = spec
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of the next update, for each group."""
        now = lr(self.spec, self.last_epoch + 1)
        first = float(self.base_lrs[0])
        return [now if base == first or not first else now * float(base) / first for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return numbers alone, which `torch.load(weights_only=True)` takes: the schedule is given anew."""
        return {key: value for key, value in super().state_dict().items() if key != "spec"}
