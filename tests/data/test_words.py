"""Words from a table give the very ids that the tokenizer gives, for any text."""

from __future__ import annotations

import gzip
import json
import random
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from rewarm.data import words
from rewarm.data.tokenizers import ASSETS, load_tokenizer
from rewarm.data.words import WordEncoder
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"
PIECES = (
    *"aZ09 \t\n\v\f\r'!_<|>\x00\x1b\x1c\x1f\x7f",
    *("  ", "   ", "\n\n", "'s", "'ll", "'T", " 've", "can't", " the", "don", "1234567", "<|endoftext|>", "<|end"),
    *("é", "e\u0301", "\u212b", "\u1e9b\u0323", "가", "\u1100\u1161", "ﬁ", "Ж", "漢", "字", "अ", "\u093c", "ñ"),
    *(
        "²",
        "½",
        "Ⅷ",
        "٣",
        "\u0663",
        "①",
        "€",
        "—",
        "“",
        "\u2019s",
        "😀",
        "👩\u200d👩",
        "\u00ad",
        "\ue000",
        "\U0001f1e6",
    ),
    *("\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u200b", "\u202f", "\u3000", "\ufeff", "\u0378"),
)


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 60))) for _ in range(count)]


def builtin() -> Tokenizer:
    return Tokenizer.from_file(str(ASSETS / "tokenizer/tokenizer.json"))


def like_neox() -> Tokenizer:
    """Return the built-in tokenizer with what GPT-NeoX's has besides: a normalizer, and runs of spaces as tokens."""
    fast = builtin()
    fast.normalizer = normalizers.NFC()
    fast.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return fast


@pytest.mark.parametrize("make", [builtin, like_neox])
def test_the_ids_of_any_text_are_those_of_the_tokenizer(make: type[Tokenizer]) -> None:
    fast, alike = make(), WordEncoder.of(make())
    assert alike is not None
    some = ["", *texts(2000, seed=0)]
    expected = [encoding.ids for encoding in fast.encode_batch_fast(some, add_special_tokens=False)]
    assert [ids.tolist() for ids in alike.encode(some)] == expected


def test_characters_of_every_kind_are_told_apart_as_the_tokenizer_does() -> None:
    fast, alike = builtin(), WordEncoder.of(builtin())
    assert alike is not None
    every = [f"a{chr(n)}b {chr(n)}1{chr(n)}" for n in range(0x3000) if not 0xD800 <= n < 0xE000]
    expected = [encoding.ids for encoding in fast.encode_batch_fast(every, add_special_tokens=False)]
    assert [ids.tolist() for ids in alike.encode(every)] == expected


def test_a_full_table_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TABLE_BYTES", 20_000)
    fast, alike = builtin(), WordEncoder.of(builtin())
    assert alike is not None
    sizes = []
    for text in texts(50, seed=1):
        assert alike.encode([text])[0].tolist() == fast.encode(text, add_special_tokens=False).ids
        sizes.append(len(alike._table))
    assert sizes != sorted(sizes)
    assert max(sizes) < 200


@pytest.mark.parametrize("change", ["prefix", "pattern", "lower", "stripped", "model"])
def test_a_tokenizer_of_another_kind_is_left_alone(change: str) -> None:
    fast = builtin()
    if change == "prefix":
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "pattern":
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif change == "lower":
        fast.normalizer = normalizers.Lowercase()
    elif change == "stripped":
        fast.add_tokens([AddedToken("word", lstrip=True)])
    else:
        fast.model.dropout = 0.1
    assert WordEncoder.of(fast) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real text beside this checkout")
@pytest.mark.parametrize("name", ["pile", "redpajama"])
def test_real_text_gives_the_ids_of_the_real_tokenizer(name: str) -> None:
    fast = load_tokenizer(str(SHARED / "20B_tokenizer.json")).fast
    alike = WordEncoder.of(fast)
    assert alike is not None
    path: Path = SHARED / f"{name}_sample.jsonl.gz"
    with gzip.open(path) as file:
        documents = [json.loads(line)["text"] for line in islice(file, 0, 4000, 40)]
    expected = [encoding.ids for encoding in fast.encode_batch_fast(documents, add_special_tokens=False)]
    assert [ids.tolist() for ids in alike.encode(documents)] == expected
