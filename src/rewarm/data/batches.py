"""Batches: which windows of which store make up the batch of a step, as a pure function of the step.

Sequence number `s` of a store is a window of `context + 1` tokens (each window's last token is the next one's
first: every token is predicted once). Windows are shuffled within blocks of `shuffle_window`, anew in each
epoch; so any step is found at once, and only the block that a step lies in must have been tokenised.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.data.store import TokenRow
from rewarm.errors import DataError

Batch = NDArray[np.int64]


@dataclass(frozen=True)
class BatchSpec:
    """What the batches of a run depend on, beside the stores."""

    batch_size: int
    context: int
    seed: int
    shuffle_window: int
    replay: float = 0.0

    def replayed(self, steps: int) -> int:
        """Return how many of the sequences of the first `steps` batches come from upstream."""
        return math.floor(self.replay * self.batch_size * steps + 0.5)


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, block: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, block)).permutation(size)


class Windows:
    """The sequences of a row of tokens in training order, without end: after the last one comes the next epoch."""

    def __init__(self, tokens: TokenRow, context: int, seed: int, shuffle_window: int) -> None:
        self._tokens, self._context, self._stride = tokens, context, tokens.stride(context)
        self._seed, self._block = seed, shuffle_window

    def _count(self) -> int:
        """Return how many sequences can be read so far."""
        return max(0, (self._tokens.n_tokens - self._context - 1) // self._stride + 1)

    def _run(self, sequence: int) -> NDArray[np.int64]:
        """Return the numbers of the windows from the `sequence`-th in order to the end of its block.

        Waits until the block is there: only then is its order known.
        """
        block = sequence // self._block
        self._tokens.ensure(((block + 1) * self._block - 1) * self._stride + self._context + 1)
        count = self._count()
        if (block + 1) * self._block <= count:
            epoch, within, size = 0, sequence, self._block
        else:  # the tokens end within the first epoch's block
            if count == 0:
                raise DataError(f"{self._tokens.folder}: has not the {self._context + 1} tokens of one sequence")
            epoch, within = divmod(sequence, count)
            block = within // self._block
            size = min(self._block, count - block * self._block)
        order = _permutation(self._seed, epoch, block, size) if self._block > 1 else np.zeros(1, dtype=np.int64)
        return block * self._block + order[within - block * self._block :]

    def numbers(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the numbers of the windows that are `first` to `first + count` in order."""
        pieces: list[NDArray[np.int64]] = []
        stop = first + count
        while first < stop:
            piece = self._run(first)[: stop - first]
            pieces.append(piece)
            first += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Return sequences number `first` to `first + count` in order, of shape (count, context + 1)."""
        return self._tokens.gather(self.numbers(first, count) * self._stride, self._context + 1)


class Batches:
    """The batches of a run: `batches[step]` for step 1, 2, …, int64 of shape (batch_size, context + 1).

    With replay, the first rows of a batch come from upstream, in upstream's own order; their number follows the
    share exactly over the run, to the nearest sequence.
    """

    def __init__(self, spec: BatchSpec, downstream: TokenRow, upstream: TokenRow | None) -> None:
        self.spec = spec
        self._downstream = Windows(downstream, spec.context, spec.seed, spec.shuffle_window)
        self._upstream = None if upstream is None else Windows(upstream, spec.context, spec.seed, 1)
        assert upstream is not None or spec.replay == 0

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, 0, self.spec.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop` of the batch of `step`."""
        spec = self.spec
        old_before, old_after = spec.replayed(step - 1), spec.replayed(step)
        n_old = old_after - old_before
        new_before = (step - 1) * spec.batch_size - old_before
        out = np.empty((stop - start, spec.context + 1), dtype=np.int64)
        middle = min(max(start, n_old), stop)
        if start < middle:
            assert self._upstream is not None
            out[: middle - start] = self._upstream.read(old_before + start, middle - start)
        out[middle - start :] = self._downstream.read(new_before + middle - n_old, stop - middle)
        return out
