from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewarm.config.schema import SourceConfig
from rewarm.config.values import build
from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.indexed import DTYPES, IndexedTokens, index_of
from rewarm.data.sources import Indexed, origin
from rewarm.data.tokenizers import load_tokenizer
from rewarm.data.validation import validation_set
from rewarm.errors import DataError, UserError

CONTEXT = 16
TOKENIZER = load_tokenizer("builtin")


def write(folder: Path, rows: list[list[int]], code: int = 8, parts: int = 1) -> Path:
    """Write an indexed dataset as Megatron does, and return its index."""
    dtype = np.dtype(DTYPES[code])
    sizes = np.array([len(row) for row in rows], dtype="<i4")
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype("<i8") * dtype.itemsize
    documents = np.arange(len(rows) + 1, dtype="<i8")
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(rows), len(documents))
    index = folder / "document.idx"
    index.write_bytes(header + sizes.tobytes() + pointers.tobytes() + documents.tobytes())
    content = np.concatenate(rows).astype(dtype).tobytes()
    if parts == 1:
        (folder / "document.bin").write_bytes(content)
    else:
        cut = len(content) // parts // dtype.itemsize * dtype.itemsize
        for part in range(parts):
            piece = content[part * cut : (part + 1) * cut if part < parts - 1 else None]
            (folder / f"document-{part:05d}-of-{parts - 1:05d}.bin").write_bytes(piece)
    return index


def sequences(count: int, length: int = CONTEXT + 1, top: int = 4000) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, top, length).tolist() for _ in range(count)]


def existing(path: Path, split: str = "train", **options: Any) -> IndexedTokens:
    config = build(SourceConfig, {"path": str(path)} | options, saved=True)
    place = origin(config, "upstream", split)
    assert isinstance(place, Indexed)
    return IndexedTokens(place.key, place.index, TOKENIZER, place.first, place.last)


@pytest.mark.parametrize("parts", [1, 3])
def test_sequences_of_the_right_length_are_replayed_whole_and_in_their_own_order(tmp_path: Path, parts: int) -> None:
    rows = sequences(60)
    tokens = existing(write(tmp_path, rows, parts=parts), validation_path=str(tmp_path / "document.idx"))
    batches = Batches(BatchSpec(4, CONTEXT, 0, 1, replay=0.5), tokens, tokens)
    for step in range(1, 10):
        assert batches[step][:2].tolist() == rows[2 * step - 2 : 2 * step]


def test_sequences_of_other_lengths_are_one_row_of_tokens(tmp_path: Path) -> None:
    rows = [row[: 3 + number] for number, row in enumerate(sequences(14))]
    tokens = existing(write(tmp_path, rows), validation_share=1e-9)
    flat = [token for row in rows for token in row]
    assert tokens.stride(CONTEXT) == CONTEXT
    assert tokens.gather(np.array([0, CONTEXT]), CONTEXT + 1).tolist() == [
        flat[: CONTEXT + 1],
        flat[CONTEXT : 2 * CONTEXT + 1],
    ]


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_every_integer_type_is_read(tmp_path: Path, code: int) -> None:
    rows = sequences(5)
    tokens = existing(write(tmp_path, rows, code), validation_share=1e-9)
    assert tokens.gather(np.array([0]), CONTEXT + 1).tolist() == rows[:1]


def test_the_last_sequences_serve_validation(tmp_path: Path) -> None:
    text = TOKENIZER.encode(["a text that is long enough to fill one sequence of tokens, and then some more of it"])[
        0
    ]
    rows = [*sequences(15), *([text[: CONTEXT + 1].tolist()] * 5)]
    index = write(tmp_path, rows)
    train, held_out = existing(index, validation_share=0.25), existing(index, "validation", validation_share=0.25)
    assert train.n_tokens == 15 * (CONTEXT + 1)
    validation = validation_set(held_out, 5 * CONTEXT, CONTEXT)
    assert validation.tokens.tolist() == rows[15:]
    per_token = len(TOKENIZER.decode(text[: CONTEXT + 1]).encode()) / (CONTEXT + 1)
    assert validation.domain_bytes.sum() == pytest.approx(5 * CONTEXT * per_token)
    assert train.digest != held_out.digest


def test_a_vocabulary_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path, sequences(20, top=50_000))
    with pytest.raises(DataError, match=r"made with another one; set data\.tokenizer"):
        existing(index)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("float", "holds float32"),
        ("magic", "is no index of Megatron"),
        ("short bin", "is truncated"),
        ("short index", "is truncated"),
        ("no bin", "document.bin is missing"),
        ("no index", "there is no such index file"),
    ],
)
def test_a_damaged_dataset_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    index = write(tmp_path, sequences(20), code=6 if damage == "float" else 8)
    binary = index.with_suffix(".bin")
    if damage == "magic":
        index.write_bytes(b"other" + index.read_bytes())
    elif damage == "short bin":
        binary.write_bytes(binary.read_bytes()[:-10])
    elif damage == "short index":
        index.write_bytes(index.read_bytes()[:60])
    elif damage == "no bin":
        binary.unlink()
    elif damage == "no index":
        index.unlink()
    with pytest.raises(UserError, match=message):
        existing(binary)


def test_a_bit_flipped_in_an_index_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    rows = sequences(20)
    index = write(tmp_path, rows)
    content, expected, refused = index.read_bytes(), [i for row in rows for i in row], 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        index.write_bytes(damaged)
        try:
            tokens = existing(index, validation_share=1e-9)
        except UserError:
            refused += 1
        else:
            assert tokens.gather(np.array([0]), tokens.n_tokens)[0].tolist() == expected
    assert refused > 34 + 4 * 20 - 8  # all of the header and the lengths, but for the number of documents


def test_other_tokens_of_the_same_shape_are_told_by_a_sample(tmp_path: Path) -> None:
    index = write(tmp_path, sequences(20))
    before = existing(index)
    index.with_suffix(".bin").write_bytes(np.array(sequences(20, top=3999), "<u2").tobytes())
    after = existing(index)
    assert (after.digest, after.sample != before.sample) == (before.digest, True)


def test_a_prefix_names_a_dataset_too(tmp_path: Path) -> None:
    index = write(tmp_path, sequences(2))
    for path in (index, index.with_suffix(".bin"), index.with_suffix("")):
        assert index_of(str(path)) == index
    assert index_of(str(tmp_path / "data.jsonl")) is None
    assert index_of(None) is None
