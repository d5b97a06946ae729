"""Validation sets: the same windows at every evaluation, each token with the domain of its document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewarm.data.store import TokenStore
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


def validation_set(store: TokenStore, n_tokens: int, context: int) -> ValidationSet:
    """Return the validation set of the first `n_tokens` predicted tokens of a store, in whole windows.

    A document's bytes are shared evenly among its tokens, so that a document cut at the end counts in part.
    """
    store.ensure(n_tokens + 1)
    count = min(n_tokens, store.n_tokens - 1) // context
    if count < 1:
        raise DataError(
            f"{store.folder}: validation text gives {store.n_tokens:,} tokens, fewer than one sequence of "
            f"{context + 1}; give more text, or a smaller train.context"
        )
    n = count * context
    flat = store.read(0, n + 1).astype(np.int64)
    rows = list(store.documents())
    ends = np.array([end for end, _, _ in rows], dtype=np.int64)
    names = tuple(sorted({domain for _, domain, _ in rows}))
    numbers = np.array([names.index(domain) for _, domain, _ in rows], dtype=np.int64)
    bytes_per_token = np.array([b for _, _, b in rows], dtype=np.float64) / np.diff(ends, prepend=0)
    # Predicted token i is token i + 1 of the store.
    document_of = np.searchsorted(ends, np.arange(1, n + 1), side="right")
    domain_of = numbers[document_of]
    domain_bytes = np.bincount(domain_of, weights=bytes_per_token[document_of], minlength=len(names)).astype(
        np.float64
    )
    windows = np.lib.stride_tricks.sliding_window_view(flat, context + 1)[::context]
    return ValidationSet(windows.copy(), domain_of.reshape(count, context), names, domain_bytes)
