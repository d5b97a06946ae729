"""Fills a store again and again, killed at a random point each time, then once to its end; for test_kills.py.

Arguments: the data config as JSON, the folder of the stores, the number of kills. Prints the store's folder, and
the shards that there were after each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import huggingface_hub  # noqa: F401 - before the first fork, so that no child imports it again

from rewarm.data import encoding
from rewarm.data.documents import Cursor, Document, Source
from rewarm.data.layout import StoreSpec, store_folder
from rewarm.data.producer import Producer
from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from tests.data import source_of

WATCHED = ("open", "os.rename", "socket.connect")


class Counted:
    """A source that calls `tick` before each document."""

    def __init__(self, source: Source, tick: Callable[[], None]) -> None:
        self._source, self._tick = source, tick

    def fingerprint(self) -> object:
        return self._source.fingerprint()

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        for row in self._source.documents(cursor):
            self._tick()
            yield row


def ticker(point: int) -> Callable[[], None]:
    """Return what kills this process when it is called for the `point`-th time."""
    left = point

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return tick


def watch(tick: Callable[[], None]) -> None:
    """Call `tick` whenever a file is opened or renamed, or the hub is called."""
    sys.addaudithook(lambda event, _: tick() if event in WATCHED else None)


def fill(folder: Path, spec: StoreSpec, source: Source, tokenizer: Tokenizer) -> NoReturn:
    """Fill the store, in this thread: nothing outlives a kill."""
    producer = Producer(folder, spec, source, tokenizer, 10**9)
    producer.run()
    os._exit(0 if producer.error is None else 1)


def main() -> None:
    data, root, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    encoding.BATCH_CHARACTERS = 1000  # so that shards are committed all along
    source, tokenizer = source_of(data, "downstream", "train"), load_tokenizer("builtin")
    spec = StoreSpec(source.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, 1000)
    folder = store_folder(root, spec)
    draw = random.Random(7)
    progress = []
    for number in range(kills + 1):
        at_document, at_event, by_document = draw.randint(20, 90), draw.randint(1, 30), draw.random() < 0.5
        child = os.fork()
        if child == 0:
            if number == kills:
                fill(folder, spec, source, tokenizer)
            if by_document:
                fill(folder, spec, Counted(source, ticker(at_document)), tokenizer)
            watch(ticker(at_event))
            fill(folder, spec, source, tokenizer)
        _, status = os.waitpid(child, 0)
        assert status == (0 if number == kills else signal.SIGKILL), (number, status)
        progress.append(len(list(folder.glob("shard-*.json"))))
    sys.stdout.write(json.dumps({"folder": str(folder), "progress": progress}))


if __name__ == "__main__":
    main()
