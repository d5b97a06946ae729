"""The next-token loss of a model, without ever holding all its logits.

A model's output matrix and its cross-entropy cost more memory than the rest of it: 2,048 tokens over a vocabulary of
50,304 are 412 MB of logits in FP32, and as much again for their gradient. Here both are worked out for a few rows of
hidden states at a time, and the gradient at once with the loss, so that nothing is kept and nothing computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_LOGITS_AT_ONCE = 1 << 20
"""4 MB in FP32, which stay in a cache."""
GPU_LOGITS_AT_ONCE = 1 << 27
"""Enough rows to fill the matrix units at any vocabulary."""
LEAST_ROWS = 256
"""With fewer, adding to the gradient of the output matrix is most of the time."""


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


Differentiate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
LEAST_PROBABILITY = 1e-30
"""Of what is smaller, FP32 would lose digits, and in the end everything."""


def differentiate(logits: Tensor, wanted: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits (n, vocabulary) and `factor` times its gradient, in the logits' type.

    `wanted` is (n, 1). Compiled it is one kernel, because nothing in it is written out of order.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = exact.amax(-1, keepdim=True)
    weights = (exact - top).exp()
    total = weights.sum(-1, keepdim=True)
    loss = (total.log() + top - exact.gather(1, wanted)).sum()
    grad = weights * (factor / total)
    hit = torch.arange(logits.shape[1], device=logits.device) == wanted
    return loss, torch.where(hit, grad - factor, grad).to(logits.dtype)


def differentiate_on_cpu(logits: Tensor, wanted: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
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
    return -ours.sum(), torch.mul(difference, factor, out=torch.empty_like(logits))


class _ScaledLoss(torch.autograd.Function):
    """`factor` times the summed cross-entropy of a linear layer's output.

    The gradient is `factor * (softmax(logits) - onehot(target))`, as in Liger Kernel's fused linear cross-entropy
    (Hsu et al. 2024), computed while the logits are at hand. `factor` is in it before it is rounded to the type of
    the products, so that FP16 underflows no sooner than it would with whole logits.
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
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        cast_hidden, cast_weight = hidden.to(dtype), weight.to(dtype)
        cast_bias = None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(cast_hidden)
        grad_weight = torch.zeros_like(weight, dtype=exact)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part, wanted = cast_hidden[start : start + rows], targets[start : start + rows, None]
            logits = nn.functional.linear(part, cast_weight, cast_bias)
            loss, grad = derive(logits, wanted, factor)
            total += loss
            grad_hidden[start : start + rows] = grad @ cast_weight
            grad_weight += grad.T @ part
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight, grad_bias)
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden, weight, bias = ctx.saved_tensors
        return hidden * grad, weight * grad, None if bias is None else bias * grad, None, None, None, None, None


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return the output layer of a transformers model where logits are just that layer of the last hidden states.

    Some architectures scale or cap their logits, or shift them on the way. So it is tried: both ways, on a few
    tokens.
    """
    any_model = cast("Any", model)
    head = any_model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any_model.base_model is model:
        return None
    tokens = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    training = model.training
    model.eval()
    with torch.no_grad():
        whole = any_model(input_ids=tokens, use_cache=False).logits
        output = any_model.base_model(input_ids=tokens, use_cache=False)
        same = hasattr(output, "last_hidden_state") and torch.allclose(
            head(output.last_hidden_state), whole, rtol=1e-4, atol=1e-4
        )
    model.train(training)
    return head if same else None


class TokenLoss(nn.Module):
    """A model together with its next-token loss.

    Windows are (n, context + 1): every token after the first is predicted from those before it. All matrix products
    run in the type that autocast says, and losses in FP32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.differentiate: Differentiate | None = None
        """How it is done; None: as the device is."""
        self._head = (linear_head(model),)  # in a tuple, so that it is not a second name of the model's parameters

    def forward(self, windows: Tensor, factor: Tensor) -> Tensor:
        """Return `factor` times the sum of the losses in nats, 0-dim, to be differentiated."""
        (head,) = self._head
        targets = windows[:, 1:].flatten()
        if head is None:
            return cross_entropy(self._plain_logits(windows), targets).sum() * factor
        hidden = self._hidden(windows)
        rows = rows_at_once(head)
        derive = self.differentiate or (differentiate_on_cpu if hidden.device.type == "cpu" else differentiate)
        arguments = (hidden, head.weight, head.bias, targets, factor, _product_type(hidden), rows, derive)
        loss: Tensor = _ScaledLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        return loss

    @torch.no_grad()
    def each(self, windows: Tensor) -> Tensor:
        """Return the loss of each predicted token in nats, of shape (n, context)."""
        (head,) = self._head
        targets = windows[:, 1:]
        if head is None:
            return cross_entropy(self._plain_logits(windows), targets.flatten()).view_as(targets)
        hidden = self._hidden(windows)
        rows, dtype = rows_at_once(head), _product_type(hidden)
        parts = zip(torch.split(hidden.to(dtype), rows), torch.split(targets.flatten(), rows), strict=True)
        losses = [cross_entropy(_logits(part, head, dtype), wanted) for part, wanted in parts]
        return torch.cat(losses).view_as(targets)

    def _hidden(self, windows: Tensor) -> Tensor:
        """Return the last hidden states, of shape (n * context, hidden size)."""
        output = cast("Any", self.model).base_model(input_ids=windows[:, :-1], use_cache=False)
        hidden: Tensor = output.last_hidden_state.flatten(0, 1)
        return hidden

    def _plain_logits(self, windows: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood in nats of each target: logits (n, vocabulary), targets (n)."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def _product_type(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
