"""Damage to a token store is found before it is trained on, and made good where the source is there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rewarm.data import integrity
from rewarm.data.documents import Document
from rewarm.data.layout import KEYS
from rewarm.data.producer import Producer
from rewarm.data.store import TokenStore
from rewarm.errors import DataError
from rewarm.storage import sealed
from tests.conftest import make_documents, make_store

DOCUMENTS = make_documents(60)
LIMIT = 1500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Return a store of five shards that nothing happened to."""
    store = make_store(tmp_path_factory.mktemp("whole"), DOCUMENTS, shard_tokens=300, limit=LIMIT)
    store.ensure(LIMIT + 1)  # one more than there are: returns once the end is written down too
    assert len(store.shards) == 5
    return store


def copy_of(store: TokenStore, root: Path) -> Path:
    return Path(shutil.copytree(store.folder, root / store.folder.name))


def as_first_version(folder: Path) -> Path:
    """Make a store what the version without checksums wrote."""
    for path in (*folder.glob("shard-*.json"), folder / "store.json", folder / "complete.json"):
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
        if path.name.startswith("shard"):
            kept = {key: kept[key] for key in KEYS}
        path.write_text(json.dumps(kept, indent=1) + "\n")
    (folder / "checked.jsonl").unlink(missing_ok=True)
    return folder


def filled(root: Path, documents: list[Document] = DOCUMENTS) -> TokenStore:
    return make_store(root, documents, shard_tokens=300, limit=LIMIT)


def everything(store: TokenStore) -> tuple[list[int], list[tuple[int, str, int]]]:
    """Return all that can be read from a store, once nobody writes there any more."""
    store.ensure(LIMIT)
    if isinstance(store._filler, Producer) and store._filler.ident:
        store._filler.join()
    return store.read(0, store.n_tokens).tolist(), list(store.documents())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.iterdir()) if path.name not in ("lock", "checked.jsonl"))
    return {path.name: path.read_bytes() for path in files if ".damaged-" not in path.name}


def flip(path: Path, at: float, bit: int = 0) -> None:
    held = bytearray(path.read_bytes())
    held[int(at * (len(held) - 1))] ^= 1 << bit
    path.write_bytes(held)


def swap(path: Path) -> None:
    """Exchange a shard's manifest with the next shard's."""
    other = path.with_name("shard-00003.json")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


Damage = Callable[[Path], object]
DAMAGE: dict[str, Damage] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\x00\x01"),
    "first bit flipped": lambda path: flip(path, 0),
    "a bit flipped": lambda path: flip(path, 0.5, 3),
    "last bit flipped": lambda path: flip(path, 1, 7),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
WRONG_JSON = ("1", '"x"', "[]", "{}", "null", "[" * 5000, '{"tokens": "many"}', '{"tokens": -1}', "NaN")
DAMAGE_TO_JSON: dict[str, Damage] = {
    **{f"holds {text[:20]}": lambda path, text=text: path.write_text(text) for text in WRONG_JSON},  # type: ignore[misc]
    "not UTF-8": lambda path: path.write_bytes(b'{"tokens": "\xff\xfe"}'),
    "UTF-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "half a character": lambda path: path.write_bytes(path.read_bytes()[:20] + b"\xc3"),
}
PARTS = ("shard-00000.tokens", "shard-00002.tokens", "shard-00004.tokens", "shard-00002.documents")
JSON = ("shard-00000.json", "shard-00004.json", "complete.json", "store.json")
CASES: list[tuple[str, str, Damage]] = [
    *((file, how, damage) for file in (*PARTS, *JSON) for how, damage in DAMAGE.items()),
    *((file, how, damage) for file in JSON for how, damage in DAMAGE_TO_JSON.items()),
    ("shard-00001.json", "manifests exchanged", swap),
    ("checked.jsonl", "a bit flipped", DAMAGE["a bit flipped"]),
    ("checked.jsonl", "zeros", DAMAGE["zeros"]),
]


def test_every_damage_is_made_good_byte_for_byte(
    whole: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, files = everything(whole), content(whole.folder)
    assert len(CASES) > 110
    for number, (file, how, damage) in enumerate(CASES):
        root = tmp_path / str(number)
        folder = copy_of(whole, root)
        damage(folder / file)
        changed = (folder / file).read_bytes() if (folder / file).exists() else None
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = everything(filled(root))
        assert found == expected, (file, how)
        if file not in ("complete.json", "checked.jsonl"):  # nobody needs these where the tokens are there
            assert content(folder) == files, (file, how)
            if how != "gone":
                assert [path for path in folder.glob("*.damaged-1") if path.read_bytes() == changed], (file, how)
            assert any(file in message for message in caplog.messages) or how == "gone", (file, how)
            assert not any("\n" in message for message in caplog.messages)


def test_every_damage_is_one_line_where_nothing_fills_the_store(whole: TokenStore, tmp_path: Path) -> None:
    expected = everything(whole)
    for number, (file, how, damage) in enumerate(CASES):
        folder = copy_of(whole, tmp_path / str(number))
        damage(folder / file)
        store = TokenStore(folder, whole.spec)
        if file in ("complete.json", "store.json", "checked.jsonl"):
            assert everything(store) == expected, (file, how)
        else:
            with pytest.raises(DataError, match=str(folder)):
                everything(store)


def test_a_lost_last_shard_is_missed_and_a_wrong_length_is_put_right(tmp_path: Path) -> None:
    """`complete.json` alone does not make a store complete."""
    store = make_store(tmp_path / "a", DOCUMENTS, shard_tokens=300)
    store.ensure(10**9)
    files = content(store.folder)
    (store.folder / "complete.json").write_text(json.dumps(sealed({"tokens": store.n_tokens + 9})))
    again = make_store(tmp_path / "a", DOCUMENTS, shard_tokens=300)
    again.ensure(10**9)
    assert again.complete
    assert content(store.folder) == files
    for path in store.folder.glob(f"shard-{len(store.shards) - 1:05d}.*"):
        path.unlink()
    lost = TokenStore(store.folder, store.spec)
    assert not lost.holds(10**9)
    assert not lost.complete
    make_store(tmp_path / "a", DOCUMENTS, shard_tokens=300).ensure(10**9)
    assert content(store.folder) == files


def test_a_source_that_gives_other_text_than_the_damaged_shard_had_is_refused(
    whole: TokenStore, tmp_path: Path
) -> None:
    folder = copy_of(whole, tmp_path)
    flip(folder / "shard-00001.tokens", 0.5)
    others = [Document(document.text.replace("fox", "cow"), document.domain) for document in DOCUMENTS]
    with pytest.raises(DataError, match=r"shard-00001\.json: the source no longer gives the text that it gave"):
        everything(filled(tmp_path, others))
    assert everything(filled(tmp_path)) == everything(whole)  # the source is put back


def test_a_disk_that_does_not_keep_what_is_written_stops_the_producer(
    whole: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(path: Path, content: memoryview) -> None:
        path.write_bytes(bytes(len(content.cast("B"))))

    folder = copy_of(whole, tmp_path)
    flip(folder / "shard-00001.tokens", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr("rewarm.data.producer.write_durably", forgetful)
        with pytest.raises(DataError, match=r"shard-00001\.tokens: is not .* written a moment ago: check the disk"):
            everything(filled(tmp_path))
    assert everything(filled(tmp_path)) == everything(whole)


def test_each_file_is_read_once_and_again_where_it_changed(
    whole: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = integrity.hashlib.file_digest

    def noted(file: object, name: str) -> object:
        read.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(integrity.hashlib, "file_digest", noted)
    folder = copy_of(whole, tmp_path)  # another inode each
    assert TokenStore(folder, whole.spec).holds(700)
    assert read == [f"shard-0000{number}.{part}" for number in range(3) for part in ("tokens", "documents")]
    read.clear()
    assert TokenStore(folder, whole.spec).holds(700)
    assert read == []
    path = folder / "shard-00001.tokens"
    path.write_bytes(path.read_bytes())
    assert TokenStore(folder, whole.spec).holds(LIMIT)
    assert read[0] == "shard-00001.tokens"
    assert len(read) == 5  # and the two shards that nobody had asked for


def test_a_store_of_the_first_version_reads_and_is_held_against_what_it_was_when_first_read(
    whole: TokenStore, tmp_path: Path
) -> None:
    expected = everything(whole)
    folder = as_first_version(copy_of(whole, tmp_path))
    assert everything(TokenStore(folder, whole.spec)) == expected
    flip(folder / "shard-00001.documents", 0.9)
    flip(folder / "shard-00003.json", 0.97)
    with pytest.raises(DataError, match="shard-00001"):
        everything(TokenStore(folder, whole.spec))
    assert everything(filled(tmp_path)) == expected
    assert set(json.loads((folder / "shard-00001.json").read_text())) > KEYS
    assert set(json.loads((folder / "shard-00002.json").read_text())) == KEYS


def broken_in_the_first_version() -> Iterator[tuple[str, Damage]]:
    yield from ((file, damage) for file in (*PARTS, "shard-00000.json") for damage in list(DAMAGE.values())[:5])
    yield from (("shard-00000.json", damage) for damage in DAMAGE_TO_JSON.values())
    yield "shard-00001.tokens", lambda path: path.write_bytes(np.full(path.stat().st_size // 2, 60_000, "<u2").data)
    yield "shard-00001.documents", lambda path: path.write_bytes(bytes(path.stat().st_size))


def test_what_a_look_tells_is_made_good_in_a_store_of_the_first_version(whole: TokenStore, tmp_path: Path) -> None:
    expected = everything(whole)
    for number, (file, damage) in enumerate(broken_in_the_first_version()):
        root = tmp_path / str(number)
        damage(as_first_version(copy_of(whole, root)) / file)
        assert everything(filled(root)) == expected, (number, file)


def test_what_changes_while_it_is_in_use_is_one_line(whole: TokenStore, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    store = TokenStore(folder, whole.spec)
    store.ensure(LIMIT)
    for damage in (DAMAGE["cut"], DAMAGE["empty"], DAMAGE["gone"]):
        for path in (folder / "shard-00003.tokens", folder / "shard-00003.documents"):
            damage(path)
        with pytest.raises(DataError, match=r"shard-00003\.tokens: changed while it was in use"):
            store.read(0, LIMIT)
        with pytest.raises(DataError, match=r"shard-00003\.documents: changed while it was in use"):
            list(store.documents())
