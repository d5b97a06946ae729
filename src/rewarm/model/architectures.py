"""What architectures of transformers do beside their layers: shape their logits, balance their experts, drop out."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewarm.errors import UserError

log = logging.getLogger(__name__)

LARGE_LOGIT = 1000.0
"""Far above what any architecture caps its logits at."""
Balance = Callable[[tuple[Tensor, ...]], Tensor]
"""From the router logits of all layers, each (tokens, experts), to a weighted loss, 0-dim."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return a transformer's blocks, in their order: the longest list of modules that is in no other list."""
    stacks: list[list[nn.Module]] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                stacks.append(list(child))
            else:
                look(child)

    look(model)
    return max(stacks, key=len, default=[])


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return the output layer of a model whose logits are that layer of the last hidden states, and nothing more.

    Some architectures scale, cap or shift their logits. This is tried on a few tokens, because no config says it for
    all of them: the layer must be given the last hidden states, and large numbers in place of its output must come
    out of the model as they are.
    """
    any_model = cast("Any", model)
    head = any_model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any_model.base_model is model:
        return None
    given: list[Tensor] = []
    probe = torch.empty(0)

    def put_probe(_: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        nonlocal probe
        given.append(arguments[0])
        probe = torch.linspace(-LARGE_LOGIT, LARGE_LOGIT, output.numel(), device=output.device).view_as(output)
        return probe

    tokens = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    training = model.training
    model.eval()
    hook = head.register_forward_hook(put_probe)
    try:
        with torch.no_grad():
            logits = any_model(input_ids=tokens, use_cache=False).logits
            output = any_model.base_model(input_ids=tokens, use_cache=False)
    finally:
        hook.remove()
        model.train(training)
    hidden = getattr(output, "last_hidden_state", None)
    same = (
        len(given) == 1
        and hidden is not None
        and given[0].shape == hidden.shape
        and torch.allclose(given[0], hidden, rtol=1e-4, atol=1e-5)
        and logits.shape == probe.shape
        and torch.allclose(logits, probe)
    )
    return head if same else None


def disable_dropout(model: nn.Module) -> None:
    """Switch all dropout of a model off, in place, and say so in one line where there was any.

    The model's config keeps what it says. Data that are seen once leave nothing to be regularised, and without
    dropout the loss that is trained on is the loss that is measured.
    """
    found = False
    for module in model.modules():
        names = [
            name for name, value in vars(module).items() if "drop" in name and isinstance(value, float) and value
        ]
        if isinstance(module, nn.Dropout) and module.p:
            names.append("p")
        for name in names:
            setattr(module, name, 0.0)
            found = True
    if found:
        config: dict[str, Any] = cast("Any", model).config.to_dict()
        values = {key: value for key, value in config.items() if "drop" in key and isinstance(value, float) and value}
        said = ", ".join(f"{key}={value:g}" for key, value in values.items())
        log.info("dropout is off, where the model's config has %s; model.dropout=true trains with it", said)


def _dropouts(values: Mapping[str, object]) -> dict[str, float]:
    """Return the probabilities of dropout, above 0, among named values."""
    return {name: value for name, value in values.items() if "drop" in name and isinstance(value, float) and value}


def balance_of(model: nn.Module, weight: float | None) -> Balance | None:
    """Return the load-balancing loss of a mixture of experts, times its weight; None where it is trained without.

    `weight` None means what the model's config says: its coefficient where `output_router_logits` is true, as for
    transformers' own loss. It is the loss of Fedus et al. 2022 (equations 4 to 6) by transformers' own function, over
    the tokens of one micro-batch. Raises `UserError` where there are no experts, or balanced in another way.
    """
    any_model = cast("Any", model)
    coefficient = getattr(any_model, "router_aux_loss_coef", None) or getattr(any_model, "aux_loss_coef", None)
    if weight is None:
        weight = (coefficient or 0.0) if getattr(any_model.config, "output_router_logits", False) else 0.0
        if coefficient and not weight:
            log.info(
                "the model's experts are trained without a load-balancing loss, as its config says; "
                "model.router_loss=%g adds it",
                coefficient,
            )
    if not weight:
        return None
    balance = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if coefficient is None and balance is None:
        raise UserError(f"model.router_loss={weight:g}: the model has no experts to balance; leave it out")
    takes = tuple(inspect.signature(balance).parameters) if balance else ()
    if takes != ("gate_logits", "num_experts", "top_k", "attention_mask"):
        raise UserError(
            f"model.router_loss={weight:g}: {any_model.config.model_type} balances its experts in a way that rewarm "
            f"does not know; model.router_loss=0 trains without"
        )
    experts, chosen = any_model.num_experts, any_model.num_experts_per_tok
    return lambda logits: weight * balance(logits, experts, chosen)  # type: ignore[misc]
