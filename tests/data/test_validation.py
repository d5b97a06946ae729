from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.data.validation import validation_set
from rewarm.errors import DataError
from tests.conftest import make_documents, make_store

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
