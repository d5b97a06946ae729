"""What every source of text gives: documents, and a cursor from which to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Cursor = Mapping[str, Any]
"""Where a source stands, as JSON: whatever it needs to give the next document and no earlier one."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the domain that it belongs to ("" where the data names none)."""

    text: str
    domain: str
    ids: NDArray[np.int64] | None = None
    """Token ids, where the data holds those instead of text."""


class Source(Protocol):
    """A stream of documents in an order that never changes."""

    def fingerprint(self) -> Mapping[str, Any]:
        """Return, as JSON, everything that the stream depends on: equal fingerprints, equal documents."""
        ...

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield each document after `cursor` (None: from the start) with the cursor after it."""
        ...
