"""Tokenizers: text to token ids, and what tells one tokenizer from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from rewarm.errors import DataError, UserError
from rewarm.hub.asking import parse_id
from rewarm.hub.download import download

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What belongs to a fast tokenizer, in Hugging Face's format."""
END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with its end-of-text id."""

    fast: FastTokenizer
    end_of_text: int
    size: int
    """One more than the highest token id."""
    fingerprint: str
    folder: Path | None = None
    """Folder with the tokenizer's files, to be saved beside the weights."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the token ids of each text, without special tokens."""
        encodings = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def beyond(self, rows: int) -> dict[str, bool]:
        """Return the tokens that an embedding of `rows` rows has no row for, and whether each is a special token."""
        added = self.fast.get_added_tokens_decoder()
        vocabulary = self.fast.get_vocab(with_added_tokens=True)
        return {token: i in added and added[i].special for token, i in vocabulary.items() if i >= rows}

    def decode(self, ids: NDArray[np.integer]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.fast.decode(ids.tolist(), skip_special_tokens=True))


def _end_of_text(path: Path) -> list[str]:
    """Return the names that the end-of-text token may have, the likeliest first."""
    config = path.with_name("tokenizer_config.json")
    eos = json.loads(config.read_text()).get("eos_token") if config.is_file() else None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return [*END_OF_TEXT, eos] if isinstance(eos, str) else [*END_OF_TEXT]


def _from_file(path: Path) -> Tokenizer:
    try:
        content = path.read_bytes()
        fast = FastTokenizer.from_buffer(content)
    except Exception as error:
        raise DataError(f"{path}: is not a tokenizer.json ({error})") from error
    fast.no_padding()
    fast.no_truncation()
    names = _end_of_text(path)
    ids = [i for i in map(fast.token_to_id, names) if i is not None]
    if not ids:
        raise DataError(f"{path}: has no end-of-text token (looked for {', '.join(names)})")
    size = max(fast.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(fast, ids[0], size, hashlib.sha256(content).hexdigest(), path.parent)


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer called `builtin`, at a local path, or on the hub (`id` or `id@revision`)."""
    if name == "builtin":
        return _from_file(ASSETS / "tokenizer" / "tokenizer.json")
    path = Path(name).expanduser()
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return _from_file(file)
    if repo := parse_id("data.tokenizer", name):
        file = download(repo, [*FILES]) / "tokenizer.json"
        if file.is_file():
            return _from_file(file)
        raise UserError(f"data.tokenizer={name}: has no tokenizer.json; give the id of a fast tokenizer")
    raise UserError(
        f"data.tokenizer={name}: no such file or folder with a tokenizer.json, and no hub id (owner/name)"
    )
