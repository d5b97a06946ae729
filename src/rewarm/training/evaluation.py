"""Scores a model on a validation set: loss, perplexity and bits a byte, in total and by domain."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from rewarm.data.validation import ValidationSet
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import check_ids
from rewarm.training.distributed import collectives, parallel, world
from rewarm.training.precision import Precision

TOKENS_AT_ONCE = {"cpu": 8192, "mps": 8192, "cuda": 32768}
"""By device; for a GPU it is an estimate. More would only take memory."""


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity where that is too large for a float; NaN stays NaN."""
    return math.inf if loss >= 700 else math.exp(loss)


@torch.no_grad()
def evaluate(
    token_loss: TokenLoss, data: ValidationSet, precision: Precision, batch_size: int | None
) -> dict[str, float]:
    """Return `loss` (nats a token), `ppl`, `bpb`, and `domain/NAME/loss` for each named domain.

    The total is the sum over the domains divided by the tokens, so the domains add up to it exactly.
    Several processes share the work, and all get the result.
    """
    n, context = data.domain_of.shape
    most = world.size() * (batch_size or max(1, TOKENS_AT_ONCE[precision.device.type] // context))
    rounds = math.ceil(n / most)
    at_once = math.ceil(n / (rounds * world.size()))
    sums = np.zeros(len(data.domains))
    check_ids(data.tokens, token_loss.model)
    token_loss.eval()
    for number in range(rounds):
        start = (number * world.size() + world.rank()) * at_once
        # All batches are of one size, for which compiled code is made once: the first windows fill up the last ones,
        # and do not count.
        windows = torch.from_numpy(data.tokens[np.arange(start, start + at_once) % n])
        with precision.autocast():
            losses = token_loss.each(windows.to(precision.device))
        domains = data.domain_of[start : start + at_once].ravel()
        weights = losses.double().cpu().numpy().ravel()[: len(domains)]
        sums += np.bincount(domains, weights, minlength=len(data.domains))
    token_loss.train()
    parallel.reshard(token_loss)
    sums = collectives.total(torch.from_numpy(sums)).numpy()
    tokens = np.bincount(data.domain_of.ravel(), minlength=len(data.domains))
    loss = float(sums.sum() / tokens.sum())
    scores = {
        "loss": loss,
        "ppl": perplexity(loss),
        "bpb": float(sums.sum() / math.log(2) / data.domain_bytes.sum()),
    }
    for name, total, count in zip(data.domains, sums, tokens, strict=True):
        if name:
            scores[f"domain/{name}/loss"] = float(total / count)
    return scores


def evaluate_sides(
    token_loss: TokenLoss, validation: Mapping[str, ValidationSet], precision: Precision, batch_size: int | None
) -> dict[str, float]:
    """Return the scores of each side's validation set, as metrics name them: `upstream/loss` and the like."""
    found = {side: evaluate(token_loss, data, precision, batch_size) for side, data in validation.items()}
    return {f"{side}/{key}": value for side, scores in found.items() for key, value in scores.items()}
