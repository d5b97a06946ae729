"""A running average of the weights, in FP32: what a decay of the learning rate would come near to, at any step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rewarm.config.plan import Plan
from rewarm.config.schema import AverageConfig


@dataclass(frozen=True)
class RunningAverage:
    """The exponential moving average of a model's weights over its updates (Polyak and Juditsky 1992 average all).

    It begins at the start weights. After `every` updates it keeps the share `keep` of itself, and takes the rest from
    the weights, so that what was `half_life` of the horizon ago counts half.
    """

    keep: float
    every: int
    weights: tuple[nn.Parameter, ...]
    """The model's own, which change."""
    means: tuple[Tensor, ...]
    """Their averages, each sharded as its weight is."""

    @classmethod
    def of(cls, config: AverageConfig, plan: Plan, model: nn.Module) -> RunningAverage | None:
        """Return the average at the weights that the model has now; None where none is asked for."""
        if config.half_life is None:
            return None
        updates = config.half_life * plan.schedule.total_steps
        weights = tuple(p for p in model.parameters() if p.requires_grad)
        means = [p.detach().clone() for p in weights]
        if config.device == "host":
            means = [mean.to("cpu") for mean in means]
        return cls(0.5 ** (config.every / updates), config.every, weights, tuple(means))

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Take in the weights after an update, where its turn has come. On the model's device no host waits."""
        if step % self.every:
            return
        for mean, weight in self._pairs():
            mean.lerp_(weight.to(mean.device), 1 - self.keep)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the model be the average within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, weight in self._pairs():
            held = weight.clone()
            weight.copy_(mean)
            mean.copy_(held)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each average with its weight: of sharded ones, what this process has of both."""
        for mean, weight in zip(self.means, self.weights, strict=True):
            yield _local(mean), _local(weight.detach())


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
