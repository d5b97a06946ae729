"""Records of a file: each with the position after it, and the faults met on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from rewarm.data.text_files import DAMAGED, TextFile, content, format_of
from rewarm.errors import DataError, first_line

TEXT_PIECE = 1 << 14
"""A file of text becomes documents of this many bytes or a little more, cut at blank lines."""
PARQUET_BATCH = 64


@dataclass(frozen=True, slots=True)
class Position:
    """Where the reader of a file stands: records (lines, rows) behind it, and decompressed bytes."""

    record: int = 0
    byte: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that cannot be used, and why."""

    reason: str


Record = Mapping[str, Any] | str | Fault


def read_records(
    text_file: TextFile, start: Position, columns: Sequence[str] | None
) -> Iterator[tuple[Position, Record]]:
    """Yield the records of a file after `start`, each with the position after it.

    A damaged end (a truncated file, a corrupt block) is one fault, and the last record.
    Only `columns` of a parquet file are read (None: all). Raises `DataError` where the file cannot be opened.
    """
    kind = format_of(text_file.name)
    at = start
    try:
        with text_file.open() as file:
            if kind == ".parquet":
                for at, record in _parquet(file, start, columns):
                    yield at, record
                return
            stream = content(text_file, file, start.byte)
            for at, record in (_text if kind == ".txt" else _lines)(stream, start):
                yield at, record
    except FileNotFoundError as error:
        raise DataError(f"{text_file.name}: is gone since the stream was listed") from error
    except DAMAGED as error:
        reason = first_line(error)
        yield Position(at.record + 1, at.byte), Fault(f"the file is damaged from here on ({reason})")


def _lines(stream: BinaryIO, start: Position) -> Iterator[tuple[Position, Record]]:
    number, byte = start.record, start.byte
    for line in stream:
        number, byte = number + 1, byte + len(line)
        if not line.isspace():
            yield Position(number, byte), _parse(line)


def _parse(line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(f"invalid UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Fault(f"malformed JSON ({error})")
    return value if isinstance(value, dict) else Fault(f"is a JSON {type(value).__name__}, not an object")


def _text(stream: BinaryIO, start: Position) -> Iterator[tuple[Position, Record]]:
    number, byte = start.record, start.byte
    lines: list[bytes] = []
    size = 0

    def piece() -> Record:
        try:
            return b"".join(lines).decode("utf-8")
        except UnicodeDecodeError as error:
            return Fault(f"invalid UTF-8 ({error.reason} at byte {byte - size + error.start})")

    for line in stream:
        number, byte, size = number + 1, byte + len(line), size + len(line)
        lines.append(line)
        if size >= TEXT_PIECE and line.isspace():
            yield Position(number, byte), piece()
            lines.clear()
            size = 0
    if lines:
        yield Position(number, byte), piece()


def _parquet(file: BinaryIO, start: Position, columns: Sequence[str] | None) -> Iterator[tuple[Position, Record]]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    known = parquet.schema_arrow.names
    present = known if columns is None else [column for column in columns if column in known]
    if columns is not None and not present:
        raise ValueError(f"has none of the columns {', '.join(columns)}, but {', '.join(known)}")
    row = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row + rows <= start.record:
            row += rows
            continue
        for batch in parquet.iter_batches(batch_size=PARQUET_BATCH, row_groups=[group], columns=present):
            if row + len(batch) <= start.record:
                row += len(batch)
                continue
            for record in batch.to_pylist():
                row += 1
                if row > start.record:
                    yield Position(row), record
