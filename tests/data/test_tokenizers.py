from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from rewarm.data.documents import Cursor, Document
from rewarm.data.encoding import encoded
from rewarm.data.layout import StoreSpec, store_folder
from rewarm.data.producer import fill_store
from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from rewarm.errors import DataError, UserError
from tests.conftest import ROOT, ListSource, make_documents
from tests.hub import Hub
from tests.hub.content import pythia, tokenizer_json

DOCUMENTS = make_documents(120)
REAL = ROOT.parent / "shared" / "data" / "20B_tokenizer.json"


def ids_of(documents: list[Document], tokenizer: Tokenizer, workers: int) -> list[tuple[list[int], Document, Cursor]]:
    stream = encoded(ListSource(documents).documents(None), tokenizer, workers)
    return [(ids.tolist(), document, cursor) for ids, document, cursor in stream]


def test_a_tokenizer_comes_from_the_hub_at_a_revision(hub: Hub) -> None:
    name = "owner/of-this-test-alone"  # so that nothing of it is in the cache
    hub.add("model", name, {revision: pythia(1) for revision in ("main", "step1000")})
    tokenizer = load_tokenizer(f"{name}@step1000")
    assert tokenizer.size == 300
    assert tokenizer.end_of_text == 0
    text = "of the loopback hub, ü too"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert load_tokenizer(name).fingerprint == tokenizer.fingerprint
    assert any("/resolve/" in request and request.endswith("tokenizer.json") for request in hub.requests)


def test_a_file_and_its_folder_give_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    assert load_tokenizer(str(tmp_path)).fingerprint == load_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "no such file or folder"), ("owner/none", "no such model on the hub")]
)
def test_a_tokenizer_that_is_nowhere_is_a_users_mistake(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(name)


@pytest.mark.skipif(not REAL.is_file(), reason="the GPT-NeoX-20B tokenizer is not beside this checkout")
def test_the_real_tokenizer_gives_its_published_ids() -> None:
    tokenizer = load_tokenizer(str(REAL))
    assert tokenizer.encode(["Hello world, The Pile."])[0].tolist() == [12092, 1533, 13, 380, 367, 587, 15]
    assert (tokenizer.size, tokenizer.end_of_text) == (50_277, 0)


def test_worker_processes_give_the_same_tokens_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewarm.data.encoding.BATCH_CHARACTERS", 500)
    tokenizer = load_tokenizer("builtin")
    alone, together = ids_of(DOCUMENTS, tokenizer, 0), ids_of(DOCUMENTS, tokenizer, 2)
    assert together == alone
    assert [row[-1] for row, _, _ in alone] == [tokenizer.end_of_text] * len(DOCUMENTS)


def test_documents_of_token_ids_are_taken_as_they_stand() -> None:
    tokenizer = load_tokenizer("builtin")
    ids = tokenizer.encode(["some text"])[0].astype(np.int64)
    [(row, document, _)] = ids_of([Document("", "d", ids)], tokenizer, 0)
    assert row == ids.tolist()
    assert (document.text, document.domain) == ("some text", "d")


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_token_ids_that_the_tokenizer_does_not_have_are_refused(wrong: int) -> None:
    with pytest.raises(DataError, match=r"made with another one; set data\.tokenizer to it"):
        ids_of([Document("", "", np.array([1, wrong]))], load_tokenizer("builtin"), 0)


def test_a_store_that_another_tokenizer_made_is_refused(tmp_path: Path) -> None:
    spec = StoreSpec({}, load_tokenizer("builtin").fingerprint, 0, 4096, 1000)
    folder = store_folder(tmp_path, spec)
    other = StoreSpec({}, "another fingerprint", 0, 4096, 1000)
    folder.rename(tmp_path / other.digest)
    with pytest.raises(DataError, match="was made with another tokenizer"):
        store_folder(tmp_path, other)


def test_a_full_disk_stops_clearly_and_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tokenizer = ListSource(DOCUMENTS), load_tokenizer("builtin")
    spec = StoreSpec(source.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, 300)
    store_folder(tmp_path, spec)
    sync, calls = os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) >= 12:  # two shards of three files, each file and then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        store = fill_store(tmp_path, spec, source, tokenizer, 10**9)
        with pytest.raises(DataError, match="No space left on device; the store is intact, rerun to go on"):
            store.ensure(10**9)
    assert len(store.shards) == 2
    assert not list(store.folder.glob(".*.tmp"))
    again = fill_store(tmp_path, spec, source, tokenizer, 10**9)
    again.ensure(10**9)
    straight = fill_store(tmp_path / "straight", spec, source, tokenizer, 10**9)
    straight.ensure(10**9)
    assert again.read(0, again.n_tokens).tolist() == straight.read(0, straight.n_tokens).tolist()
