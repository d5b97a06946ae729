"""Text to token ids word by word: what a byte-level BPE tokenizer gives, several times faster.

Such a tokenizer cuts text into words by a fixed pattern and merges each word by itself. So the ids of a word are the
same wherever it stands, and a table of the words met so far saves nearly all the merging. The words are cut here,
by the same pattern over the same classes of characters, of which the tokenizer itself is asked; their ids come from
the tokenizer. This holds Python's lock, so it serves in processes of its own and not beside a training loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

TABLE_BYTES = 64 << 20
"""Memory for the table of words; when it is full the table is emptied."""
_ROW_BYTES = 200
"""Memory for a word beside its characters, estimated."""

# GPT-2's pattern, as `tokenizers` has it, over ASCII. Python's own \s holds characters that are no white space there.
_SPACE = r"\t\n\v\f\r "
_WORD = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+"
    rf"| ?[^{_SPACE}A-Za-z0-9]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)

# Where the tokenizer cuts "aX!X0" tells what kind of character X is, because it keeps a run of one kind together:
#   a letter:       "aé!é0"  ->  aé | ! | é | 0     a digit:            "a²!²0"  ->  a | ² | ! | ²0
#   a white space:  "a…!…0"  ->  a | … | ! | … | 0  (… a no-break space) anything else: "a€!€0"  ->  a | €!€ | 0
# The keys are the ends of the pieces, the values the ASCII character that stands for the kind in `_WORD`.
_BY_CUTS = {(2, 3, 4, 5): "a", (1, 2, 3, 5): "0", (1, 2, 3, 4, 5): "\n", (1, 4, 5): "!"}


class _Classes(dict[int, str]):
    """Maps a character to one of ASCII of the same kind, asking the tokenizer's own pattern once for each."""

    def __init__(self, fast: FastTokenizer) -> None:
        super().__init__((code, chr(code)) for code in range(128))
        self._fast = fast

    def __missing__(self, code: int) -> str:
        pieces = self._fast.pre_tokenizer.pre_tokenize_str(f"a{chr(code)}!{chr(code)}0")
        kind = self[code] = _BY_CUTS[tuple(end for _, (_, end) in pieces)]
        return kind


def _splitter(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds these texts, the longest where several begin; None where there are none."""
    ordered = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


class WordEncoder:
    """Encodes with a table of words, to exactly the ids that the tokenizer gives; `of` says for which tokenizers."""

    def __init__(self, fast: FastTokenizer) -> None:
        added = fast.get_added_tokens_decoder().values()
        self._fast = fast
        self._classes = _Classes(fast)
        # Some added tokens are looked for in the text as it stands, the others after it was normalized.
        self._first = _splitter(token.content for token in added if not token.normalized)
        self._second = _splitter(token.content for token in added if token.normalized)
        self._table: dict[str, bytes] = {}
        self._room = TABLE_BYTES

    @classmethod
    def of(cls, fast: FastTokenizer) -> Self | None:
        """Return the encoder of a byte-level BPE tokenizer as GPT-2's and GPT-NeoX's; None for any other."""
        spec = json.loads(fast.to_str())
        model, before = spec["model"], spec["pre_tokenizer"] or {}
        alike = (
            model["type"] == "BPE"
            and not model.get("dropout")
            and (before.get("type"), before.get("add_prefix_space")) == ("ByteLevel", False)
            and before.get("use_regex", True)
            and (spec["normalizer"] or {"type": "NFC"})["type"] == "NFC"
            and (spec["truncation"], spec["padding"]) == (None, None)
            and all(
                token["content"].isascii() and not (token["single_word"] or token["lstrip"] or token["rstrip"])
                for token in spec["added_tokens"]
            )
        )
        return cls(fast) if alike else None

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the token ids of each text, without special tokens."""
        rows = [self._words(text) for text in texts]
        self._learn(set().union(*rows))
        ids = self._table.__getitem__
        return [np.frombuffer(b"".join(map(ids, words)), dtype=np.uint32) for words in rows]

    def _learn(self, words: set[str]) -> None:
        if self._room < 0:
            self._table.clear()
            self._room = TABLE_BYTES
        new = list(words.difference(self._table))
        for word, encoding in zip(new, self._fast.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._table[word] = np.array(encoding.ids, dtype=np.uint32).tobytes()
            self._room -= _ROW_BYTES + len(word)

    def _words(self, text: str) -> list[str]:
        """Return the words of a text, and the added tokens that it holds, in order: joined, the text normalized."""
        words: list[str] = []
        for piece, is_token in _cut(self._first, text):
            if is_token:
                words.append(piece)
                continue
            normal = piece
            if not piece.isascii() and self._fast.normalizer is not None:
                normal = self._fast.normalizer.normalize_str(piece)
            for part, is_later_token in _cut(self._second, normal):
                if is_later_token:
                    words.append(part)
                elif part.isascii():
                    words += _WORD.findall(part)
                else:
                    at = 0
                    for alike in _WORD.findall(part.translate(self._classes)):
                        words.append(part[at : at + len(alike)])
                        at += len(alike)
        return words


def _cut(splitter: re.Pattern[str] | None, text: str) -> list[tuple[str, bool]]:
    """Return the pieces of a text, each with whether it is one of the texts that the pattern finds."""
    if splitter is None:
        return [(text, False)]
    return [(piece, n % 2 == 1) for n, piece in enumerate(splitter.split(text))]
