"""The next-token loss of a model, without ever holding all its logits.

A model's output matrix and its cross-entropy cost more memory than the rest of it: 2,048 tokens over a vocabulary of
50,304 are 412 MB of logits in FP32, and as much again for their gradient. Here both are worked out for a few rows of
hidden states at a time, and the gradient at once with the loss, so that nothing is kept and nothing computed twice.
torch's own `linear_cross_entropy` with chunks does the same, but rounds FP16 gradients before the loss is scaled.

In FP16 the gradient of the logits has a range of its own. It lies between -1 and 1 whatever the loss is multiplied
by, and most of its entries are small: the probabilities of all the tokens that did not come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rewarm.errors import UserError
from rewarm.model.architectures import Balance, linear_head

CPU_LOGITS_AT_ONCE = 1 << 20
"""4 MB in FP32, which stay in a cache."""
GPU_LOGITS_AT_ONCE = 1 << 27
"""Enough rows to fill the matrix units at any vocabulary."""
LEAST_ROWS = 256
"""With fewer, adding to the gradient of the output matrix is most of the time."""
FP16_GAIN = 64.0
"""What the gradient of the logits is multiplied by in FP16. Probabilities from 1e-6 on then keep all their digits,
those under 5e-10 become 0, and the gradient of the hidden states overflows only where a weight is above 500."""
FP16_SUM = 2.0**15
"""No sum over rows may be larger in FP16, whose largest number is 65,504."""


def rows_at_once(head: nn.Linear) -> int:
    """Return for how many tokens logits are held at a time."""
    vocab_size, hidden_size = head.weight.shape
    most = CPU_LOGITS_AT_ONCE if head.weight.device.type == "cpu" else GPU_LOGITS_AT_ONCE
    return max(LEAST_ROWS, hidden_size, most // vocab_size)


def _logits(hidden: Tensor, head: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Return logits in FP32 (FP64 where `dtype` is), whatever type they are multiplied in."""
    bias = None if head.bias is None else head.bias.to(dtype)
    logits = nn.functional.linear(hidden, head.weight.to(dtype), bias)
    return logits.to(torch.promote_types(dtype, torch.float32))


Differentiate = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
LEAST_PROBABILITY = 1e-30
"""Below this a probability loses digits in FP32, and then underflows; log_softmax is used instead."""


def differentiate(logits: Tensor, wanted: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits (n, vocabulary) and `gain` times its gradient, in the logits' type.

    `wanted` is (n, 1). Compiled it is one kernel, because nothing in it is written out of order.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = exact.amax(-1, keepdim=True)
    weights = (exact - top).exp()
    total = weights.sum(-1, keepdim=True)
    loss = (total.log() + top - exact.gather(1, wanted)).sum()
    grad = weights * (gain / total)
    hit = torch.arange(logits.shape[1], device=logits.device) == wanted
    return loss, torch.where(hit, grad - gain, grad).to(logits.dtype)


def differentiate_on_cpu(logits: Tensor, wanted: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """Do what `differentiate` does in few passes, each over all logits where nothing is compiled.

    Loss and gradient come from one softmax, and what can be is done in place: passes over the vocabulary are most of
    the time beside products. Looking at a value costs nothing here.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    p = torch.softmax(logits, -1, dtype=exact)
    ours = p.gather(1, wanted)
    if ours.min() > LEAST_PROBABILITY:
        ours = ours.log_()
    else:
        ours = torch.log_softmax(logits, -1, dtype=exact).gather(1, wanted)
    difference = p.scatter_add_(1, wanted, p.new_full(wanted.shape, -1.0))
    if gain != 1.0:
        difference *= gain
    return -ours.sum(), difference.to(logits.dtype)


@dataclass(frozen=True)
class Teacher:
    """A model whose predictions another one is to stay near to: `kl` times how far it is adds to its loss.

    That is the divergence KL(teacher || model) of each next token, in nats. Of a token it has the gradient
    `softmax(logits) - softmax(teacher's logits)`, as distillation without a temperature has (Hinton et al. 2015).
    """

    model: nn.Module
    head: nn.Linear
    kl: float
    divergence: Tensor
    """Sum of the divergences of all tokens since it was last set to 0; 0-dim, FP32."""

    @classmethod
    def of(cls, model: nn.Module, kl: float) -> Teacher:
        """Return a model as a teacher. Raises `UserError` for one that does more to its logits than a layer does."""
        head = linear_head(model)
        if head is None:
            raise UserError(f"anchor.kl={kl:g}: not for a model that shapes its logits; use anchor.l2 or replay")
        model.requires_grad_(requires_grad=False).eval()
        return cls(model, head, kl, torch.zeros((), device=head.weight.device))

    @torch.no_grad()
    def hidden(self, windows: Tensor) -> Tensor:
        """Return the last hidden states of all tokens but the last of each window, as rows."""
        output = cast("Any", self.model).base_model(input_ids=windows[:, :-1], use_cache=False)
        return cast("Tensor", output.last_hidden_state.flatten(0, 1))


def differentiate_towards(
    logits: Tensor, wanted: Tensor, gain: float, taught: Tensor, kl: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed cross-entropy, the summed divergence, and `gain` times the gradient of their sum.

    There the divergence of the logits (n, vocabulary) from those `taught` counts `kl` times. `wanted` is (n, 1).
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    ours, theirs = (torch.log_softmax(each.to(exact), -1) for each in (logits, taught))
    p, q = ours.exp(), theirs.exp()
    loss = -ours.gather(1, wanted).sum()
    grad = (1 + kl) * p - kl * q
    hit = torch.arange(logits.shape[1], device=logits.device) == wanted
    grad = torch.where(hit, grad - 1, grad) * gain
    return loss, (q * (theirs - ours)).sum(), grad.to(logits.dtype)


def _fitting(hidden: Tensor, rows: int) -> Tensor:
    """Return the power of two that keeps a sum over `rows` of FP16 hidden states in range, 0-dim, FP32.

    Each may be weighted by as much as `FP16_GAIN`. The device works it out, so that the host does not wait. A sum in
    the middle of the range has 2^30 of room below it, which the rows of tokens that hardly come need.
    """
    largest = torch.linalg.vector_norm(hidden, math.inf, dtype=torch.float32)
    return torch.exp2(torch.floor(torch.log2(FP16_SUM / (FP16_GAIN * rows * largest)))).clamp(max=1.0)


class _ScaledLoss(torch.autograd.Function):
    """`factor` times the summed cross-entropy of a linear layer's output.

    The gradient is `factor * (softmax(logits) - onehot(target))`, as in Liger Kernel's fused linear cross-entropy
    (Hsu et al. 2024), computed while the logits are at hand. `factor` is left to the backward pass, in FP32: whatever
    it is, no digit of the logits' gradient is lost.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # autograd's own object
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        factor: Tensor,
        dtype: torch.dtype,
        rows: int,
        derive: Differentiate,
        teacher: Teacher | None,
        taught: Tensor | None,
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        cast_hidden, cast_weight = hidden.to(dtype), weight.to(dtype)
        cast_bias = None if bias is None else bias.to(dtype)
        gain, fit, summed = 1.0, None, cast_hidden
        if dtype == torch.float16:
            # With a teacher, the gradient of a logit lies between -(1 + kl) and 1 + kl.
            gain, fit = FP16_GAIN / (1 + (teacher.kl if teacher else 0)), _fitting(cast_hidden, rows)
            summed = cast_hidden * fit
        grad_hidden = torch.empty_like(cast_hidden)
        grad_weight = torch.zeros_like(weight, dtype=exact)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = nn.functional.linear(cast_hidden[part], cast_weight, cast_bias)
            if teacher is None or taught is None:
                loss, grad = derive(logits, targets[part, None], gain)
            else:
                theirs = _logits(taught[part].to(dtype), teacher.head, dtype)
                loss, apart, grad = differentiate_towards(logits, targets[part, None], gain, theirs, teacher.kl)
                teacher.divergence.add_(apart)
            total += loss
            grad_hidden[part] = grad @ cast_weight
            grad_weight += grad.T @ summed[part]
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=exact)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, factor / gain, fit)
        ctx.dtype = hidden.dtype
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden, weight, bias, factor, fit = ctx.saved_tensors
        factor = grad * factor
        hidden = hidden.to(ctx.dtype) * factor  # in FP32, unless the model itself has made them smaller
        weight = weight * (factor if fit is None else factor / fit)
        return hidden, weight, None if bias is None else bias * factor, *(None,) * 7


class TokenLoss(nn.Module):
    """A model together with its next-token loss.

    Windows are (n, context + 1): every token after the first is predicted from those before it. All matrix products
    run in the type that autocast says, and losses in FP32.
    """

    def __init__(self, model: nn.Module, balance: Balance | None = None, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model = model
        self.balance = balance
        """What training adds to the mean loss of a token: the load-balancing loss of a mixture of experts."""
        self.differentiate: Differentiate | None = None
        """The kernel for loss and gradient of the logits; None takes the device's."""
        self.teacher = teacher
        """What pulls its predictions; the loss that is returned is that of the tokens alone."""
        self._head = (linear_head(model),)  # in a tuple, so that it is not a second name of the model's parameters

    def forward(self, windows: Tensor, factor: Tensor) -> Tensor:
        """Return `factor` times the sum of the losses in nats, 0-dim, to be differentiated.

        With experts, the load-balancing loss counts once for each predicted token, as it does in a mean.
        """
        (head,) = self._head
        targets = windows[:, 1:].flatten()
        output = self._run(windows, self.model if head is None else self.model.base_model)
        if head is None:
            loss = cross_entropy(_exact(output.logits), targets).sum() * factor
        else:
            hidden = output.last_hidden_state.flatten(0, 1)
            rows = rows_at_once(head)
            derive = self.differentiate or (differentiate_on_cpu if hidden.device.type == "cpu" else differentiate)
            taught = self.teacher and self.teacher.hidden(windows)
            kinds = (_product_type(hidden), rows, derive, self.teacher, taught)
            loss = _ScaledLoss.apply(hidden, head.weight, head.bias, targets, factor, *kinds)  # type: ignore[no-untyped-call]
        if self.balance is not None:
            loss = loss + self.balance(output.router_logits) * (factor * targets.numel())
        return loss

    @torch.no_grad()
    def each(self, windows: Tensor) -> Tensor:
        """Return the cross-entropy of each predicted token in nats, of shape (n, context)."""
        (head,) = self._head
        targets = windows[:, 1:]
        output = self._run(windows, self.model if head is None else self.model.base_model)
        if head is None:
            return cross_entropy(_exact(output.logits), targets.flatten()).view_as(targets)
        hidden = output.last_hidden_state.flatten(0, 1)
        rows, dtype = rows_at_once(head), _product_type(hidden)
        parts = zip(torch.split(hidden.to(dtype), rows), torch.split(targets.flatten(), rows), strict=True)
        losses = [cross_entropy(_logits(part, head, dtype), wanted) for part, wanted in parts]
        return torch.cat(losses).view_as(targets)

    def _run(self, windows: Tensor, module: Any) -> Any:  # noqa: ANN401 - a model of transformers, and its output
        """Return what the model, or the transformer under its output layer, makes of all tokens but the last."""
        experts = {} if self.balance is None or not self.training else {"output_router_logits": True}
        return module(input_ids=windows[:, :-1], use_cache=False, **experts)


def _exact(logits: Tensor) -> Tensor:
    """Return logits (n, context, vocabulary) as rows, in FP32 or more."""
    return logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood in nats of each target: logits (n, vocabulary), targets (n)."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def _product_type(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
