"""Text that the model itself has written: a source like any other, filled before training begins.

A text is what the model goes on with after the end-of-text token alone, or after a short prompt. Such text keeps a
model near what it was, though nobody has its old data (arXiv 2505.13811, 2605.26097).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rewarm.config.schema import GenerateConfig
from rewarm.data.documents import Cursor, Document
from rewarm.data.store import TokenRow, TokenStore
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError, UserError

log = logging.getLogger(__name__)

Ids = NDArray[np.int64]

SHARD_TOKENS = 16_384
"""Of a store of such text: what a killed command loses is small, and so is what nobody reads."""
NGRAM = 8
"""Tokens of the pieces that a text must not repeat too often."""
JUDGED = 64
"""Texts after which is said whether the model can write at all."""
NOISE = 0.85
"""Loss of the model on what it has written, as a share of that of tokens drawn evenly, from which on it is noise."""
MOST_DROPPED = 0.9
"""Share of texts left out from which on the model only repeats itself."""


COUNTED = ("kept", "repeating", "twice")
"""What a cursor counts of the texts so far."""


class Author(Protocol):
    """A model that writes."""

    seconds: float
    """For which it has written so far."""

    def identity(self) -> str:
        """Return what tells its weights from others."""
        ...

    def write(self, prompts: Sequence[Ids], length: int, seed: int) -> list[Ids]:
        """Return a text of at most `length` tokens for each prompt, which it begins with; without end-of-text."""
        ...

    def loss(self, texts: Sequence[Ids]) -> float:
        """Return its own loss on texts, in nats a token."""
        ...

    def close(self) -> None:
        """Give back the memory that it took."""
        ...


def repeated(ids: Ids) -> float:
    """Return which share of the n-grams of a text stood in it before."""
    grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM) if len(ids) >= NGRAM else np.empty((0, NGRAM))
    return 1 - len(np.unique(grams, axis=0)) / len(grams) if len(grams) else 0.0


def read_prompts(path: str, tokenizer: Tokenizer) -> list[Ids]:
    """Return the lines of a file as token ids. Raises `UserError` where there is no file, or no text in it."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"generate.prompts={path}: is no file of text; give one with a prompt on each line"
        ) from error
    found = [line for line in map(str.strip, lines) if line]
    if not found:
        raise UserError(f"generate.prompts={path}: holds no text; give a file with a prompt on each line")
    return [ids.astype(np.int64) for ids in tokenizer.encode(found)]


class GeneratedSource:
    """What an author writes, as a stream of documents that begins anew at any of them.

    Batch number b is drawn with seed b, so that it is the same whenever it is written on the same machine.
    """

    def __init__(self, author: Author, config: GenerateConfig, length: int, tokenizer: Tokenizer) -> None:
        self._author, self._config, self._length, self._tokenizer = author, config, length, tokenizer
        self._prompts = read_prompts(config.prompts, tokenizer) if config.prompts else [np.empty(0, dtype=np.int64)]
        longest = max(map(len, self._prompts))
        if longest >= length:
            raise UserError(
                f"generate.prompts={config.prompts}: a prompt has {longest:,} tokens, and a text has {length:,} at "
                f"most; give a larger generate.length, or shorter prompts"
            )

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the model and all that its text depends on."""
        prompts = hashlib.sha256(b"\0".join(ids.tobytes() for ids in self._prompts)).hexdigest()
        how = {**asdict(self._config), "prompts": prompts, "length": self._length}
        return {"kind": "self", "model": self._author.identity(), **how}

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the texts that are kept; the cursor says how many of which batch, and counts those left out."""
        size, config = self._config.batch_size, self._config
        at: dict[str, Any] = (
            dict(cursor) if cursor else {"batch": 0, "taken": 0, "latest": []} | dict.fromkeys(COUNTED, 0)
        )
        latest = deque(at["latest"], maxlen=config.dedup)
        try:
            for batch in count(at["batch"]):
                prompts = [self._prompts[(batch * size + i) % len(self._prompts)] for i in range(size)]
                texts = self._author.write(prompts, self._length, batch)
                if batch == 0:
                    self._judge_loss(texts)
                for number in range(at["taken"] if batch == at["batch"] else 0, size):
                    ids = texts[number]
                    digest = hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()
                    fault = self._fault(ids, digest, latest)
                    at[fault or "kept"] += 1
                    if fault is None:
                        latest.append(digest)
                        ended = np.append(ids, self._tokenizer.end_of_text)
                        place = {"batch": batch, "taken": number + 1, "latest": list(latest)}
                        yield Document("", "", ended), at | place
                    self._judge_dropped(at)
        finally:
            self._author.close()

    def _fault(self, ids: Ids, digest: str, latest: deque[str]) -> str | None:
        """Return why a text is left out: `repeating` itself, or written `twice`; None where it is kept."""
        if len(ids) == 0 or digest in latest:
            return "twice"
        return "repeating" if repeated(ids) > self._config.max_repeated else None

    def _judge_loss(self, texts: Sequence[Ids]) -> None:
        """Say the model's loss on its own text. Raises `DataError` where that is noise."""
        loss, even = self._author.loss(texts), math.log(self._tokenizer.size)
        log.info("replay_source=self: the start model's own loss on what it writes is %.3f nats a token", loss)
        if loss > NOISE * even:
            raise DataError(
                f"replay_source=self: the start model writes noise, with a loss of {loss:.2f} nats a token where "
                f"tokens drawn evenly have {even:.2f}; lower generate.temperature, or replay other text"
            )

    def _judge_dropped(self, at: Mapping[str, Any]) -> None:
        """Raise `DataError` where hardly any text can be kept."""
        dropped = at["repeating"] + at["twice"]
        if dropped + at["kept"] >= JUDGED and dropped > MOST_DROPPED * (dropped + at["kept"]):
            raise DataError(
                f"replay_source=self: of {dropped + at['kept']:,} texts the start model repeats itself in "
                f"{at['repeating']:,} and wrote {at['twice']:,} before; raise generate.temperature or "
                f"generate.max_repeated, or give generate.prompts"
            )


@dataclass(frozen=True)
class Written:
    """What an author writes into a store before training begins."""

    row: TokenRow
    tokens: int
    """How many of it are read."""
    author: Author

    def wait(self) -> None:
        """Wait until it is there, and say what there is. Raises what stopped it."""
        self.row.ensure(self.tokens)
        log.info("replay_source=self: %s", ", ".join(f"{n:,} {what}" for what, n in self.told().items()))

    def told(self) -> dict[str, float]:
        """Return the tokens there are, the texts kept and left out, and for how many seconds was written here."""
        assert isinstance(self.row, TokenStore)
        cursor = (self.row.shards[-1].cursor if self.row.shards else None) or {}
        counts = {name: cursor[name] for name in COUNTED if name in cursor}
        return {"tokens": self.row.n_tokens, **counts, "seconds": round(self.author.seconds, 1)}
