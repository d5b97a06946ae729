"""A stream of documents out of files, with a cursor that loses no record and doubles none."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rewarm.data.documents import Cursor, Document
from rewarm.data.records import Fault, Position, Record, read_records
from rewarm.data.text_files import TextFile
from rewarm.errors import DataError

log = logging.getLogger(__name__)

FAULTS_NAMED = 20
"""So many bad records are reported one by one; the others are counted."""


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold what. `a.b` looks inside a struct, or an object written as JSON."""

    text: str = "text"
    domain: str | None = None
    tokens: str | None = None
    """Token ids, to be taken as they stand instead of the text."""

    def columns(self) -> list[str]:
        """Return the top-level fields."""
        content = self.text if self.tokens is None else self.tokens
        return list(dict.fromkeys(field.split(".")[0] for field in (content, self.domain) if field))


@dataclass(frozen=True)
class Part:
    """The share of a stream that serves training or validation, chosen by a hash of each document's content."""

    split: str
    validation_share: float

    def holds(self, content: bytes) -> bool:
        """Return whether the document of this content belongs to the part."""
        digest = hashlib.blake2b(content, digest_size=8).digest()
        held_out = int.from_bytes(digest, "big") / 2**64 < self.validation_share
        return held_out == (self.split == "validation")


def _as_mapping(value: object) -> Mapping[str, Any] | None:
    """Return a struct, or the object that a text holds as JSON; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def look_up(record: Mapping[str, Any], path: str) -> object:
    """Return the value at a dotted `path`, through structs and objects written as JSON; None where there is none."""
    value: object = record
    for key in path.split("."):
        if (inner := _as_mapping(value)) is None:
            return None
        value = inner.get(key)
    return value


def _dotted(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields of a record as `look_up` takes them, one level deep."""
    for key, value in record.items():
        inner = _as_mapping(value)
        yield from (f"{key}.{name}" for name in inner) if inner else (key,)


class RecordSource:
    """The documents of some files, in order.

    `identity` is what tells the files' content from any other. A record that cannot be used is counted, reported
    and passed over; more of them than `max_bad_share` of all records (the first one is always let pass, unless the
    share is 0) end the stream with a `DataError`.
    """

    def __init__(
        self,
        files: Sequence[TextFile],
        fields: Fields,
        identity: Mapping[str, Any],
        max_bad_share: float,
        part: Part | None = None,
    ) -> None:
        self._files, self._fields, self._identity = files, fields, identity
        self._max_bad_share, self._part = max_bad_share, part

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the files' identity, the fields and the part."""
        part = None if self._part is None else asdict(self._part)
        return {**self._identity, "fields": asdict(self._fields), "part": part}

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the documents; the cursor holds the file, the position in it, and the counts so far."""
        # Stores of every version hold such cursors: the number of the file is called "shard" in them.
        at = cursor or {"shard": 0, "record": 0, "byte": 0, "read": 0, "bad": 0}
        read, bad = at["read"], at["bad"]
        for number in range(at["shard"], len(self._files)):
            file = self._files[number]
            start = Position(at["record"], at["byte"]) if number == at["shard"] else Position()
            for position, record in read_records(file, start, self._fields.columns()):
                read += 1
                document = self._document(record)
                if isinstance(document, Fault):
                    bad += 1
                    self._count(f"{file.name}:{position.record}: {document.reason}", bad, read)
                elif document is not None:
                    yield document, {"shard": number, **asdict(position), "read": read, "bad": bad}
        if bad > FAULTS_NAMED:
            log.warning("%s of %s records could not be used", f"{bad:,}", f"{read:,}")
        if bad == read:
            what = f"none of the {bad:,} records can be used" if bad else "there is nothing in the files"
            raise DataError(f"{self._files[0].name}: {what}")

    def field_names(self) -> list[str]:
        """Return the fields of the first record that has any, those of structs as `a.b`; plain text has none."""
        for file in self._files:
            for _, record in read_records(file, Position(), None):
                if isinstance(record, str):
                    return []
                if isinstance(record, Mapping):
                    return list(_dotted(record))
        return []

    def _count(self, fault: str, bad: int, read: int) -> None:
        if bad <= FAULTS_NAMED:
            log.warning("%s; passed over", fault)
        allowed = 0 if self._max_bad_share == 0 else max(1, self._max_bad_share * read)
        if bad > allowed:
            raise DataError(
                f"{fault}; that makes {bad:,} bad records of {read:,}, more than data.max_bad_share="
                f"{self._max_bad_share:g} allows; mend the data, or raise it"
            )

    def _document(self, record: Record) -> Document | Fault | None:
        """Return the document of a record, or what is wrong with it; None where it is empty or not of the part."""
        if isinstance(record, Fault):
            return record
        if isinstance(record, str):
            return self._of_text(record, "")
        domain = look_up(record, self._fields.domain) if self._fields.domain else None
        field = self._fields.text if self._fields.tokens is None else self._fields.tokens
        value = look_up(record, field)
        if value is None:
            return Fault(f"has no field {field!r}, but {', '.join(map(repr, record)) or 'none'}")
        document = self._of_text if self._fields.tokens is None else self._of_tokens
        return document(value, domain if isinstance(domain, str) else "")

    def _of_text(self, text: object, domain: str) -> Document | Fault | None:
        if not isinstance(text, str):
            return Fault(f"field {self._fields.text!r} holds a {type(text).__name__}, not text")
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError as error:
            return Fault(f"invalid Unicode ({error.reason} at character {error.start})")
        return Document(text, domain) if self._wants(content) else None

    def _of_tokens(self, value: object, domain: str) -> Document | Fault | None:
        ids = np.asarray(value)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            return Fault(f"field {self._fields.tokens!r} holds {ids.dtype} in {ids.ndim} dimensions, not token ids")
        ids = ids.astype(np.int64)
        return Document("", domain, ids) if self._wants(ids.tobytes()) else None

    def _wants(self, content: bytes) -> bool:
        return bool(content) and (self._part is None or self._part.holds(content))
