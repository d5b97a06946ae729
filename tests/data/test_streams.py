from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.data.documents import Cursor, Document, Source
from rewarm.errors import DataError, UserError
from tests.data import source_of
from tests.hub.content import Record, jsonl, parquet, pile, slimpajama, texts, zst

RECORDS = pile("streams", 90)
WRITERS: dict[str, Callable[[list[Record]], bytes]] = {
    ".jsonl": jsonl,
    ".json": jsonl,
    ".jsonl.gz": lambda records: gzip.compress(jsonl(records)),
    ".jsonl.zst": lambda records: zst(jsonl(records[:30])) + zst(jsonl(records[30:])),  # two frames
    ".parquet": parquet,
}


def stream(path: Path | str, split: str = "train", **options: Any) -> Source:
    shared = {name: options.pop(name) for name in ("max_bad_share",) if name in options}
    side = {"path": str(path), "domain_field": "meta.pile_set_name"} | options
    return source_of({"downstream": side} | shared, "downstream", split)


def read(source: Source, cursor: Cursor | None = None) -> list[tuple[Document, Cursor]]:
    # Through JSON, as a shard's manifest keeps a cursor.
    return list(source.documents(cursor and json.loads(json.dumps(cursor))))


def texts_of(source: Source) -> list[str]:
    return [document.text for document, _ in read(source)]


@pytest.fixture
def whole() -> dict[str, Any]:
    """Let nothing be held out for validation, so that a test sees every record."""
    return {"validation_share": 1e-12}


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_format_gives_all_records_and_goes_on_after_any_cursor(
    tmp_path: Path, suffix: str, whole: dict[str, Any]
) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(WRITERS[suffix](RECORDS))
    source = stream(path, **whole)
    rows = read(source)
    assert [document.text for document, _ in rows] == [record["text"] for record in RECORDS]
    assert [document.domain for document, _ in rows] == [record["meta"]["pile_set_name"] for record in RECORDS]
    for first in (0, 17, 18, 40, 89):
        rest = read(source, rows[first][1])
        assert [document for document, _ in rest] == [document for document, _ in rows[first + 1 :]]
        for second in range(0, len(rest), 13):  # a second resume in a row, from the first one's cursor
            again = read(source, rest[second][1])
            assert [document for document, _ in again] == [document for document, _ in rest[second + 1 :]]


def test_folders_and_globs_are_read_in_order_of_their_names(tmp_path: Path, whole: dict[str, Any]) -> None:
    (tmp_path / "sub").mkdir()
    for number, (suffix, write) in enumerate(WRITERS.items()):
        (tmp_path / "sub" / f"{number}{suffix}").write_bytes(write(RECORDS[number * 10 : number * 10 + 10]))
    (tmp_path / "README.md").write_text("no documents")
    expected = [record["text"] for record in RECORDS[:50]]
    assert texts_of(stream(tmp_path, **whole)) == expected
    assert texts_of(stream(f"{tmp_path}/**/*.*", **whole)) == expected
    assert texts_of(stream(f"{tmp_path}/sub/*.json", **whole)) == expected[10:20]


def test_text_files_become_documents_that_end_at_blank_lines(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "book.txt"
    paragraphs = ["\n".join(texts(f"p{number}", 20)) for number in range(80)]
    path.write_text("\n\n".join(paragraphs))
    found = read(stream(path, **whole))
    assert len(found) > 2
    assert "".join(document.text for document, _ in found) == path.read_text()
    assert all(document.text.endswith("\n\n") for document, _ in found[:-1])
    assert [d for d, _ in read(stream(path, **whole), found[0][1])] == [d for d, _ in found[1:]]


def test_a_domain_may_lie_in_an_object_written_as_json(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(parquet(slimpajama("json", 10)))
    source = stream(path, **whole | {"domain_field": "meta.redpajama_set_name"})
    assert {document.domain for document, _ in read(source)} == {"RedPajamaCommonCrawl", "RedPajamaC4"}


def test_fields_are_named_by_the_config(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl([{"content": {"body": "deep text"}, "text": "not this"}]))
    assert texts_of(stream(path, **whole | {"text_field": "content.body"})) == ["deep text"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_token_ids_are_read_in_the_place_of_text(tmp_path: Path, suffix: str, whole: dict[str, Any]) -> None:
    rows: list[Record] = [{"input_ids": list(range(number, number + 5)), "text": "unread"} for number in range(40)]
    path = tmp_path / f"tokens{suffix}"
    path.write_bytes(WRITERS[suffix](rows))
    found = read(stream(path, **whole | {"tokens_field": "input_ids"}))
    assert [document.ids.tolist() for document, _ in found if document.ids is not None] == [
        row["input_ids"] for row in rows
    ]
    with pytest.raises(DataError, match="field 'text' holds <U6 in 0 dimensions, not token ids"):
        read(stream(path, **whole | {"tokens_field": "text"}))


BAD_LINES = {
    "malformed JSON": b'{"text": "no end\n',
    "invalid UTF-8": b'{"text": "\xff\xfe"}\n',
    "has no field 'text', but 'body'": b'{"body": "elsewhere"}\n',
    "holds a int, not text": b'{"text": 3}\n',
    "is a JSON list, not an object": b"[1]\n",
    "invalid Unicode": b'{"text": "\\ud800"}\n',
}


@pytest.mark.parametrize("reason", list(BAD_LINES))
def test_a_bad_record_is_reported_with_file_and_line_and_passed_over(
    tmp_path: Path, reason: str, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(RECORDS[:6]) + BAD_LINES[reason] + jsonl(RECORDS[6:20]))
    with caplog.at_level(logging.WARNING):
        rows = read(stream(path, **whole))
    assert [document.text for document, _ in rows] == [record["text"] for record in RECORDS[:20]]
    assert f"{path}:7: " in caplog.text
    assert reason in caplog.text
    assert rows[5][1]["bad"] == 0
    assert rows[-1][1]["bad"] == 1


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_a_truncated_file_is_one_fault_and_the_next_file_is_read(
    tmp_path: Path, suffix: str, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    content = WRITERS[suffix](RECORDS[:60])
    (tmp_path / f"a{suffix}").write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / f"b{suffix}").write_bytes(WRITERS[suffix](RECORDS[60:]))
    with caplog.at_level(logging.WARNING):
        rows = read(stream(tmp_path, **whole))
    found = [document.text for document, _ in rows]
    assert found[-30:] == [record["text"] for record in RECORDS[60:]]
    assert found[:-30] == [record["text"] for record in RECORDS[: len(found) - 30]]
    assert f"a{suffix}:" in caplog.text
    assert "damaged from here on" in caplog.text
    assert rows[-1][1]["bad"] == 1
    for at in (0, len(rows) - 31, len(rows) - 15):  # the fault is counted once, wherever the stream goes on
        if at >= 0:
            assert read(stream(tmp_path, **whole), rows[at][1]) == rows[at + 1 :]


def test_a_damaged_block_of_a_parquet_file_ends_that_file_only(tmp_path: Path, whole: dict[str, Any]) -> None:
    content = bytearray(parquet(RECORDS[:60]))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    (tmp_path / "a.parquet").write_bytes(content)
    (tmp_path / "b.parquet").write_bytes(parquet(RECORDS[60:]))
    rows = read(stream(tmp_path, **whole))
    assert [document.text for document, _ in rows[-30:]] == [record["text"] for record in RECORDS[60:]]
    assert rows[-1][1]["bad"] == 1


def test_more_bad_records_than_the_share_allows_stop_the_stream(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(RECORDS[:8]) + b"{\n{\n" + jsonl(RECORDS))
    with pytest.raises(DataError, match=r"data.jsonl:10: malformed JSON.*2 bad records of 10, more than"):
        read(stream(path, **whole))
    assert len(read(stream(path, **whole, max_bad_share=0.2))) == 98
    with pytest.raises(DataError, match=r"data.jsonl:9: .*1 bad records of 9"):
        read(stream(path, **whole, max_bad_share=0.0))


def test_a_stream_of_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty.jsonl: there is nothing in the files"):
        read(stream(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.jsonl", "there is no such file or folder"),
        ("data.csv", "is none of .jsonl"),
        ("folder", "holds no file of documents"),
        ("*.nothing", "holds no file of documents"),
    ],
)
def test_a_path_without_documents_is_a_users_mistake(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        stream(tmp_path / path)


def test_one_file_serves_training_and_validation_without_overlap(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(RECORDS + RECORDS[:10]))  # a document that occurs twice stays on its side
    train = texts_of(stream(path, validation_share=0.3))
    validation = texts_of(stream(path, "validation", validation_share=0.3))
    assert validation
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(record["text"] for record in RECORDS + RECORDS[:10])
    assert len(validation) < len(train)


def test_validation_files_inside_the_training_folder_are_taken_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(RECORDS[:50]))
    (tmp_path / "held.jsonl").write_bytes(jsonl(RECORDS[50:]))
    options = {"validation_path": str(tmp_path / "held.jsonl")}
    assert texts_of(stream(tmp_path, **options)) == [record["text"] for record in RECORDS[:50]]
    assert texts_of(stream(tmp_path, "validation", **options)) == [record["text"] for record in RECORDS[50:]]


def test_the_fingerprint_follows_the_files_and_not_the_folder_they_lie_in(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    (first / "a.jsonl").write_bytes(jsonl(RECORDS[:5]))
    before = stream(first).fingerprint()
    first.rename(second)
    assert stream(second).fingerprint() == before
    (second / "a.jsonl").write_bytes(jsonl(RECORDS[:6]))
    assert stream(second).fingerprint() != before
    assert stream(second, text_field="other").fingerprint() != stream(second).fingerprint()


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(RECORDS[:5]))
    source = stream(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a.jsonl: is gone"):
        read(source)


def test_memory_stays_flat_however_long_the_corpus(tmp_path: Path, whole: dict[str, Any]) -> None:
    import tracemalloc

    path = tmp_path / "long.jsonl.zst"
    path.write_bytes(zst(jsonl(RECORDS * 400)))  # 8 MB of text

    def peak(documents: Iterator[tuple[Document, Cursor]], count: int) -> int:
        tracemalloc.start()
        for _ in range(count):
            next(documents)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few = peak(stream(path, **whole).documents(None), 100)
    many = peak(stream(path, **whole).documents(None), 30_000)
    assert many < few + 4_000_000
