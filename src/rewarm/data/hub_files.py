"""Files of the hub: read by ranges of bytes, and asked for again where the hub fails."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

from rewarm.errors import DataError
from rewarm.hub.asking import gated_advice, passing, retried

READ_SECONDS = 30.0
"""Seconds that a request waits for an answer."""
RANGE = 8 << 20
"""Bytes of one request."""


@dataclass(frozen=True)
class HubFile:
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
        return io.BufferedReader(_HubStream(self), RANGE)


class _HubStream(io.RawIOBase):
    """The bytes of a remote file. A request that fails is made again, with growing waits, until patience runs out.

    It then raises `DataError`. A rerun goes on from the cursor in the token store, not from here.
    """

    def __init__(self, file: HubFile) -> None:
        from huggingface_hub import hf_hub_url

        self._file = file
        self._url = hf_hub_url(file.dataset, file.path, repo_type="dataset", revision=file.commit)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:
            return 0
        data = self._fetch(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, start: int, stop: int) -> bytes:
        return retried(
            self._file.name,
            lambda: self._request(start, stop),
            self._file.patience,
            f"the hub failed for {self._file.patience:g} s at byte {start:,}",
            "what was tokenised is kept, rerun to go on",
        )

    def _request(self, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # public, not in __all__

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self._url, headers=headers, timeout=READ_SECONDS) as response:
            status = response.status_code
            if response.headers.get("X-Error-Code") == "GatedRepo":
                raise DataError(f"{self._file.name}: {gated_advice(self._file.dataset, 'dataset')}")
            if 400 <= status < 500 and not passing(status):
                raise DataError(f"{self._file.name}: the hub refuses it (HTTP {status}); check HF_TOKEN")
            if status >= 400:
                raise ConnectionError(f"HTTP {status}")
            if status != 206:
                raise DataError(f"{self._file.name}: {self._url} does not serve ranges (HTTP {status})")
            data = bytes(response.read())
        if len(data) != stop - start:  # a connection that was cut is an end like any other to the HTTP library
            raise ConnectionError(f"{len(data):,} bytes came of {stop - start:,}")
        return data
