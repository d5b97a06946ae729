"""Fills a store again and again, killed at a random point each time, then once to its end; for test_kills.py.

Arguments: the data config as JSON, the folder of the stores, the number of kills. Prints the store's folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub  # noqa: F401 - before the first fork, so that no child imports it again

from rewarm.config import DataConfig
from rewarm.data.documents import Cursor, Document, Source
from rewarm.data.producer import Producer
from rewarm.data.sources import make_source
from rewarm.data.store import StoreSpec, open_store
from rewarm.data.tokenizers import load_tokenizer

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


def main() -> None:
    data, root, kills = DataConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    source, tokenizer = make_source(data, "downstream", "train"), load_tokenizer("builtin")
    spec = StoreSpec(source.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, 1000)
    store = open_store(root, spec)
    draw = random.Random(7)
    for number in range(kills + 1):
        at_document, at_event = draw.randint(20, 150), draw.randint(1, 25)
        by_document, last = draw.random() < 0.5, number == kills
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert killed != last, (number, status, at_document, at_event)
            continue

        left = {"documents": at_document, "events": at_event}

        def tick(what: str, left: dict[str, int] = left) -> None:
            left[what] -= 1
            if left[what] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if not last and not by_document:
            sys.addaudithook(lambda event, _: tick("events") if event in WATCHED else None)
        counts = not last and by_document
        counted = Counted(source, lambda: tick("documents") if counts else None)
        producer = Producer(store.folder, spec, counted, tokenizer, 10**9)
        producer.run()  # here and now: nothing of a thread outlives the kill
        if producer.error:
            raise producer.error
        os._exit(0)
    sys.stdout.write(f"{store.folder}\n")


if __name__ == "__main__":
    main()
