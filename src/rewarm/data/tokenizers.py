"""Tokenizers: text to token ids, and what tells one tokenizer from another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from rewarm.errors import DataError, UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with its end-of-text id."""

    fast: FastTokenizer
    end_of_text: int
    fingerprint: str
    folder: Path | None = None
    """Folder with the tokenizer's files, to be saved beside the weights."""

    @property
    def size(self) -> int:
        """Return one more than the highest token id."""
        return int(self.fast.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        return [e.ids for e in self.fast.encode_batch_fast(list(texts), add_special_tokens=False)]


def _from_file(path: Path, end_of_text: str | None = None) -> Tokenizer:
    try:
        content = path.read_bytes()
        fast = FastTokenizer.from_buffer(content)
    except Exception as error:
        raise DataError(f"{path}: is not a tokenizer.json ({error})") from error
    fast.no_padding()
    fast.no_truncation()
    names = (end_of_text,) if end_of_text else END_OF_TEXT
    ids = [i for i in map(fast.token_to_id, names) if i is not None]
    if not ids:
        raise DataError(f"{path}: has no end-of-text token (looked for {', '.join(names)})")
    return Tokenizer(fast, ids[0], hashlib.sha256(content).hexdigest(), path.parent)


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer called `builtin`, at a local path, or on the hub (`id` or `id@revision`)."""
    if name == "builtin":
        return _from_file(ASSETS / "tokenizer" / "tokenizer.json")
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path)
    if (path / "tokenizer.json").is_file():
        return _from_file(path / "tokenizer.json")
    raise UserError(f"data.tokenizer={name}: no such file or folder with a tokenizer.json")
