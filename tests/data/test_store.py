from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rewarm.data.documents import Cursor, Document
from rewarm.data.layout import StoreSpec, store_folder
from rewarm.data.producer import Producer, fill_store
from rewarm.data.store import TokenStore
from rewarm.data.tokenizers import load_tokenizer
from rewarm.errors import DataError, StorageError
from tests.conftest import ListSource, make_documents, make_store

DOCUMENTS = make_documents(200)


def all_files(folder: Path) -> dict[str, bytes]:
    """Return what a store's files hold, but for those that tell of this machine."""
    files = (path for path in sorted(folder.iterdir()) if path.name not in ("lock", "checked.jsonl"))
    return {path.name: path.read_bytes() for path in files}


def test_a_store_holds_every_document_once_closed_by_end_of_text(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    store.ensure(10**9)
    assert store.complete
    assert len(store.shards) > 3
    tokenizer = load_tokenizer("builtin")
    expected = [i for ids in tokenizer.encode([d.text for d in DOCUMENTS]) for i in (*ids, tokenizer.end_of_text)]
    assert store.read(0, store.n_tokens).tolist() == expected
    ends = [end for end, _, _ in store.documents()]
    assert ends[-1] == store.n_tokens
    assert (store.read(0, store.n_tokens)[np.array(ends) - 1] == tokenizer.end_of_text).all()
    assert [domain for _, domain, _ in store.documents()] == [d.domain for d in DOCUMENTS]
    assert [n for _, _, n in store.documents()] == [len(d.text.encode()) for d in DOCUMENTS]


def test_manifests_count_by_domain(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    store.ensure(10**9)
    for key, expected in {"documents": 100, "bytes": sum(len(d.text) for d in DOCUMENTS[::2])}.items():
        assert sum(shard.manifest["domains"]["prose"][key] for shard in store.shards) == expected
    tokens = sum(counts["tokens"] for shard in store.shards for counts in shard.manifest["domains"].values())
    assert tokens == store.n_tokens


def test_reads_across_shards_equal_the_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS, shard_tokens=300)
    store.ensure(10**9)
    whole = store.read(0, store.n_tokens)
    for start, stop in [(0, 1), (290, 310), (0, 1000), (299, 299), (store.n_tokens - 5, store.n_tokens)]:
        assert store.read(start, stop).tolist() == whole[start:stop].tolist()


def test_a_limit_cuts_the_store_to_that_many_tokens(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "a", DOCUMENTS)
    whole.ensure(10**9)
    cut = make_store(tmp_path / "b", DOCUMENTS, limit=1234)
    cut.ensure(10**9)
    assert cut.n_tokens == 1234
    assert cut.read(0, 1234).tolist() == whole.read(0, 1234).tolist()
    *_, (_, _, cut_bytes) = cut.documents()
    last = sum(1 for _ in cut.documents()) - 1
    assert 0 < cut_bytes <= len(DOCUMENTS[last].text)


class Interrupted(ListSource):
    """A source that fails after some documents, as a network does."""

    def __init__(self, documents: list[Document], fail_after: int) -> None:
        super().__init__(documents)
        self._fail_after = fail_after

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        for number, row in enumerate(super().documents(cursor)):
            if number == self._fail_after:
                raise DataError("connection lost")
            yield row


def test_a_store_filled_with_interruptions_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    straight = make_store(tmp_path / "a", DOCUMENTS)
    straight.ensure(10**9)
    tokenizer = load_tokenizer("builtin")
    failures = 0
    for fail_after in (10, 90, 45, 61, 130, 200):
        store = fill_store(tmp_path / "b", straight.spec, Interrupted(DOCUMENTS, fail_after), tokenizer, until=10**9)
        with contextlib.suppress(DataError):
            store.ensure(10**9)
        failures += not store.complete
    assert failures >= 3
    assert store.complete
    assert all_files(straight.folder) == all_files(store.folder)


def test_a_disk_that_is_full_when_a_store_is_made_is_said_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StoreSpec({}, "tokenizer", 0, 256, 300)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"store\.json: cannot be written \(No space"):
            store_folder(tmp_path, spec)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store_folder(tmp_path, spec).is_dir()


def test_many_producers_at_once_make_one_store(tmp_path: Path) -> None:
    straight = make_store(tmp_path / "a", DOCUMENTS)
    straight.ensure(10**9)
    folder = store_folder(tmp_path / "b", straight.spec)
    tokenizer = load_tokenizer("builtin")
    producers = [Producer(folder, straight.spec, ListSource(DOCUMENTS), tokenizer, 10**9) for _ in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
        assert producer.error is None
    assert all_files(folder) == all_files(straight.folder)


def test_a_producer_stops_ahead_of_what_is_asked_and_a_later_one_goes_on(tmp_path: Path) -> None:
    source, tokenizer = ListSource(DOCUMENTS), load_tokenizer("builtin")
    spec = StoreSpec(source.fingerprint(), tokenizer.fingerprint, 0, tokenizer.size, shard_tokens=300)
    store = fill_store(tmp_path, spec, source, tokenizer, until=500)
    store.ensure(500)
    assert 500 <= store.n_tokens < 1200
    assert not store.complete
    store = fill_store(tmp_path, spec, source, tokenizer, until=1500)
    store.ensure(1500)
    assert store.n_tokens >= 1500


def test_what_stops_the_producer_reaches_the_reader(tmp_path: Path) -> None:
    class Broken(ListSource):
        def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
            raise ZeroDivisionError(cursor)

    tokenizer = load_tokenizer("builtin")
    spec = StoreSpec({}, tokenizer.fingerprint, 0, tokenizer.size, 300)
    store = fill_store(tmp_path, spec, Broken([]), tokenizer, until=500)
    with pytest.raises(DataError, match="tokenising failed: ZeroDivisionError"):
        store.ensure(500)


def test_everything_that_tokens_depend_on_changes_the_digest() -> None:
    base = StoreSpec({"a": 1}, "t", 0, 100, 10)
    others = [
        StoreSpec({"a": 2}, "t", 0, 100, 10),
        StoreSpec({"a": 1}, "u", 0, 100, 10),
        StoreSpec({"a": 1}, "t", 1, 100, 10),
        StoreSpec({"a": 1}, "t", 0, 100_000, 10),
        StoreSpec({"a": 1}, "t", 0, 100, 11),
        StoreSpec({"a": 1}, "t", 0, 100, 10, limit=5),
    ]
    assert len({spec.digest for spec in (base, *others)}) == 7
    assert others[3].dtype.itemsize == 4


def test_readers_see_shards_as_they_are_committed(tmp_path: Path) -> None:
    gate = threading.Event()

    class Gated(ListSource):
        def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
            for number, (document, position) in enumerate(super().documents(cursor)):
                if number == 150:
                    gate.wait(timeout=60)
                yield Document(document.text * 300, document.domain), position

    tokenizer = load_tokenizer("builtin")
    spec = StoreSpec({}, tokenizer.fingerprint, 0, tokenizer.size, 100_000)
    folder = store_folder(tmp_path, spec)
    producer = Producer(folder, spec, Gated(DOCUMENTS), tokenizer, until=10**9)
    reader = TokenStore(folder, spec, producer)
    producer.start()
    reader.ensure(100_000)
    assert not reader.complete
    seen = reader.n_tokens
    gate.set()
    reader.ensure(10**9)
    assert reader.complete
    assert reader.n_tokens > seen
