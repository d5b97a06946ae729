from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.schema import Config
from rewarm.data.prepare import check_domain_fields, open_validation
from rewarm.data.tokenizers import load_tokenizer
from rewarm.data.validation import validation_set
from rewarm.errors import DataError, UserError
from tests.conftest import make_documents, make_store
from tests.hub.content import jsonl, parquet, pile, slimpajama

DOCUMENTS = make_documents(100)


def test_every_predicted_token_has_the_domain_of_its_document(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    data = validation_set(store, 1600, context=16)
    assert data.tokens.shape == (100, 17)
    assert data.domains == ("code", "prose")
    expected = []
    for end, domain, _ in store.documents():
        expected += [data.domains.index(domain)] * (end - len(expected))
    assert data.domain_of.ravel().tolist() == expected[1:1601]
    assert data.tokens[:, 1:].ravel().tolist() == store.read(1, 1601).tolist()


def test_bytes_are_those_of_the_predicted_tokens(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    store.ensure(10**9)
    whole = validation_set(store, store.n_tokens - 1, context=1)
    total = sum(len(d.text) for d in DOCUMENTS)
    first = next(iter(store.documents()))
    assert whole.domain_bytes.sum() == pytest.approx(total - first[2] / first[0])


def test_whole_windows_only(tmp_path: Path) -> None:
    assert validation_set(make_store(tmp_path, DOCUMENTS), 1000, context=30).n_tokens == 990


def test_text_too_short_for_one_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than one sequence of 5001; give more text"):
        validation_set(make_store(tmp_path, make_documents(3)), 5000, context=5000)


def side(folder: Path, name: str, content: bytes) -> str:
    """Write text that serves training and validation, and return the config of a source of it."""
    for part in ("train", "validation"):
        (folder / f"{part}-{name}").write_bytes(content)
    return f"{{path:{folder / f'train-{name}'},validation_path:{folder / f'validation-{name}'}}}"


def test_a_domain_field_that_no_record_has_is_refused_with_those_that_they_have(
    tmp_path: Path, small: Callable[..., Config]
) -> None:
    jsonl_side, parquet_side = (
        side(tmp_path, "a.jsonl", jsonl(pile("fields", 60))),
        side(tmp_path, "b.parquet", parquet(slimpajama("fields", 60))),
    )
    plain_side = side(tmp_path, "c.txt", b"plain text has no fields at all\n\n" * 200)
    tokenizer = load_tokenizer("builtin")

    def check(upstream: str, downstream: str, *more: str) -> None:
        config = small("data=files", f"data.upstream={upstream}", f"data.downstream={downstream}", *more)
        check_domain_fields(config, open_validation(config, tokenizer))

    has = r"no record of the upstream validation text has it; they have text, meta\.pile_set_name;"
    with pytest.raises(UserError, match=rf"data\.domain_field=meta\.set: {has}"):
        check(jsonl_side, plain_side, "data.domain_field=meta.set")
    own = jsonl_side.replace("}", ",domain_field:set}")
    with pytest.raises(UserError, match=rf"data\.upstream\.domain_field=set: {has}"):
        check(own, plain_side)
    with pytest.raises(UserError, match=r"downstream .* they have text, meta\.redpajama_set_name;"):
        check(jsonl_side, parquet_side, "data.domain_field=meta.pile_set_name")
    check(jsonl_side, plain_side, "data.domain_field=meta.pile_set_name")
    check(jsonl_side, parquet_side)


def test_more_validation_tokens_than_there_are_is_one_line_that_says_how_many(
    tmp_path: Path, small: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    text = side(tmp_path, "a.jsonl", jsonl(pile("few", 30)))
    config = small("data=files", f"data.upstream={text}", f"data.downstream={text}", "data.validation_tokens=1M")
    with caplog.at_level(logging.WARNING):
        sets = open_validation(config, load_tokenizer("builtin"))
    few = sets["downstream"].n_tokens
    assert few % config.train.context == 0
    assert 500 < few < 3000
    said = [message for message in caplog.messages if "downstream" in message]
    assert len(said) == 1
    assert said[0].startswith(f"data.validation_tokens=1,000,000: the downstream validation text has {few:,} tokens")
