"""A pull towards the weights that a run started from, against forgetting where there is no old data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Anchor:
    """The start of a run, and how strongly each update pulls towards it.

    The penalty `l2 / 2 |w - w0|^2` of L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483), decoupled from the
    gradient as AdamW decouples weight decay (Loshchilov and Hutter 2019): in the gradient, Adam would divide it by
    each weight's own step size, and the weights that learn most would be held least.
    """

    l2: float
    weights: tuple[Tensor, ...]
    start: tuple[Tensor, ...]

    @classmethod
    def of(cls, l2: float, model: nn.Module, start: nn.Module | None = None) -> Anchor:
        """Return the anchor of a model at the weights of `start`, or where it is now."""
        weights = tuple(p for p in model.parameters() if p.requires_grad)
        there = weights if start is None else tuple(p for p in start.parameters() if p.requires_grad)
        return cls(l2, weights, tuple(p.detach().clone() for p in there))

    @torch.no_grad()
    def pull(self, lr: float, found_inf: Tensor) -> None:
        """Move the weights by `lr * l2` of the way to the start, unless the step was skipped. The host waits not."""
        share = (lr * self.l2) * (1 - found_inf)
        for weight, start in zip(self.weights, self.start, strict=True):
            weight.lerp_(start, share.to(weight.dtype))

    @torch.no_grad()
    def distance(self) -> float:
        """Return the Euclidean distance of all weights from the start. The host waits for the device."""
        apart = [weight - start for weight, start in zip(self.weights, self.start, strict=True)]
        return float(torch.nn.utils.get_total_norm(apart))
