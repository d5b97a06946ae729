"""Files of the hub as shards: read by ranges of bytes, and asked for again where the hub fails."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

from rewarm.data.hub import gated_advice, passing, retried
from rewarm.errors import DataError

READ_SECONDS = 30.0
"""For so long a request may stay without an answer."""
RANGE = 8 << 20
"""Bytes of one request."""


@dataclass(frozen=True)
class HubShard:
    """A file of a dataset at a commit."""

    dataset: str
    commit: str
    path: str
    size: int
    patience: float
    """Seconds for which a hub that fails is asked again."""

    @property
    def name(self) -> str:
        """Return the dataset and the path in it."""
        return f"{self.dataset}/{self.path}"

    def open(self) -> BinaryIO:
        """Return the file, read by range requests as its content is asked for."""
        return io.BufferedReader(_HubFile(self), RANGE)


class _HubFile(io.RawIOBase):
    """A remote file. A request that fails is made again, with growing waits, until patience runs out.

    `DataError` then: the position is the cursor's business, so that a rerun continues.
    """

    def __init__(self, shard: HubShard) -> None:
        from huggingface_hub import hf_hub_url

        self._shard = shard
        self._url = hf_hub_url(shard.dataset, shard.path, repo_type="dataset", revision=shard.commit)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._shard.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        stop = min(self._at + len(buffer), self._shard.size)
        if stop <= self._at:
            return 0
        data = self._fetch(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, start: int, stop: int) -> bytes:
        return retried(
            self._shard.name,
            lambda: self._request(start, stop),
            self._shard.patience,
            f"the hub failed for {self._shard.patience:g} s at byte {start:,}",
            "what was tokenised is kept, rerun to go on",
        )

    def _request(self, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # public, not in __all__

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self._url, headers=headers, timeout=READ_SECONDS) as response:
            status = response.status_code
            if response.headers.get("X-Error-Code") == "GatedRepo":
                raise DataError(f"{self._shard.name}: {gated_advice(self._shard.dataset, 'dataset')}")
            if 400 <= status < 500 and not passing(status):
                raise DataError(f"{self._shard.name}: the hub refuses it (HTTP {status}); check HF_TOKEN")
            if status >= 400:
                raise ConnectionError(f"HTTP {status}")
            if status != 206:
                raise DataError(f"{self._shard.name}: {self._url} does not serve ranges (HTTP {status})")
            data = bytes(response.read())
        if len(data) != stop - start:
            raise ConnectionError(f"{len(data):,} bytes came of {stop - start:,}")
        return data
