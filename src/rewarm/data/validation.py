"""Validation sets: the same windows at every evaluation, each token with the domain of its document."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewarm.data.store import TokenRow
from rewarm.errors import DataError


@dataclass(frozen=True)
class ValidationSet:
    """`n` windows and what is needed to score them by domain."""

    tokens: NDArray[np.int64]
    """(n, context + 1)"""
    domain_of: NDArray[np.int64]
    """(n, context): number of the domain of each predicted token."""
    domains: tuple[str, ...]
    domain_bytes: NDArray[np.float64]
    """(domains,): bytes of text behind the predicted tokens of each domain."""

    @property
    def n_tokens(self) -> int:
        """Return the number of predicted tokens."""
        return int(self.domain_of.size)

    @property
    def digest(self) -> str:
        """Return what tells the scored tokens, and their domains, from any others."""
        digest = hashlib.sha256(repr((self.tokens.shape, self.domains)).encode())
        for array in (self.tokens, self.domain_of):
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
        return digest.hexdigest()[:24]


def validation_set(tokens: TokenRow, n_tokens: int, context: int) -> ValidationSet:
    """Return the validation set of the first `n_tokens` predicted tokens, in whole windows.

    A document's bytes are shared evenly among its tokens, so that a document cut at the end counts in part.
    """
    stride = tokens.stride(context)
    wanted = n_tokens // context
    tokens.ensure((wanted - 1) * stride + context + 1)
    count = min(wanted, (tokens.n_tokens - context - 1) // stride + 1)
    if count < 1:
        raise DataError(
            f"{tokens.folder}: validation text gives {tokens.n_tokens:,} tokens, fewer than one sequence of "
            f"{context + 1}; give more text, a larger validation_share, or a smaller train.context"
        )
    starts = np.arange(count, dtype=np.int64) * stride
    end = int(starts[-1]) + context + 1
    rows = list(tokens.documents(end))
    ends = np.array([end for end, _, _ in rows], dtype=np.int64)
    names = tuple(sorted({domain for _, domain, _ in rows}))
    numbers = np.array([names.index(domain) for _, domain, _ in rows], dtype=np.int64)
    bytes_per_token = np.array([b for _, _, b in rows], dtype=np.float64) / np.diff(ends, prepend=0)
    predicted = (starts[:, None] + np.arange(1, context + 1)).ravel()
    document_of = np.searchsorted(ends, predicted, side="right")
    domain_of = numbers[document_of]
    domain_bytes = np.bincount(domain_of, weights=bytes_per_token[document_of], minlength=len(names)).astype(
        np.float64
    )
    windows = tokens.gather(starts, context + 1).astype(np.int64)
    return ValidationSet(windows, domain_of.reshape(count, context), names, domain_bytes)
