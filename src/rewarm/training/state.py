"""Everything about a run that changes while it trains, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rewarm.config.schema import OptimizerConfig
from rewarm.training.average import RunningAverage
from rewarm.training.distributed import collectives, world
from rewarm.training.precision import LossScaler


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW with two groups: matrices and embeddings decay, LayerNorms and biases do not.

    The fused form is used because it takes the loss scale and the overflow flag on the device. Its LR is set
    before each step; the 0 here is never used.
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


class TrainState:
    """The state of a run after `step` updates were tried: weights, their average, optimizer, scaler, counts, RNG."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        scaler: LossScaler,
        average: RunningAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.average = model, optimizer, scaler, average
        self.step = 0
        self.tokens = 0
        # Sums over the finite steps since the last line of metrics; they stay on the device until then.
        self.sums = torch.zeros(3, dtype=torch.float32, device=scaler.scale.device)

    def position(self) -> dict[str, float]:
        """Return where in the run this is, as each line of metrics says."""
        return {"step": self.step, "tokens": self.tokens}

    def add(self, loss: Tensor, grad_norm: Tensor, found_inf: Tensor) -> None:
        """Take the loss (this process's part of it) and the gradient norm of a finite step into the sums."""
        row = torch.stack((loss, grad_norm, torch.ones_like(loss)))
        self.sums += torch.where(found_inf > 0, 0.0, row)

    def gather_sums(self) -> None:
        """Reduce the sum of losses, of which each process has a part, to the first one; all have the other sums."""
        collectives.total(self.sums[:1])
        if not world.is_first():
            self.sums[0] = 0.0

    def take_means(self) -> tuple[float, float]:
        """Return mean loss and mean gradient norm since the last call, and start anew. Waits for the device.

        NaN where no step was finite. Of several processes the first one gets the loss.
        """
        self.gather_sums()
        loss, norm, count = self.sums.tolist()
        self.sums.zero_()
        return (loss / count, norm / count) if count else (math.nan, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights and their average, which are stored in Hugging Face's format."""
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng,
            "sums": self.sums.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned; the optimizer may be left out."""
        self.step, self.tokens = state["step"], state["tokens"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        self.sums.copy_(state["sums"])
        if not world.is_first():
            self.sums[0] = 0.0  # the first process has it
